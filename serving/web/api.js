/** Client of the service: its endpoints, API key, events, and error messages. It does not depend on the page. */

const KEY = "dalle-key";
/** Status of an error that comes in a stream, after the status line, by its code. */
const STATUSES = {
  moderation_blocked: 400,
  deadline_exceeded: 408,
  request_cancelled: 409,
  queue_full: 429,
  deadline_unreachable: 429,
  replica_lost: 503,
  shutting_down: 503,
  moderation_unavailable: 503,
};

/** The API key, kept until the tab is closed; where storage is forbidden, until the page is left. */
export const apiKey = {
  value: readKey(),
  set(value) {
    this.value = value;
    try {
      if (value) sessionStorage.setItem(KEY, value);
      else sessionStorage.removeItem(KEY);
    } catch {
      // Kept in memory.
    }
  },
};

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** A failed request. `status` 0: no response, or one that broke off. `retryAfter`: seconds, or null. */
export class ServiceError extends Error {
  constructor(status, { message = "", param = null, retryAfter = null, requestId = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }

  /** Whether the same request can succeed later, or once a key is entered. */
  get canRetry() {
    return [0, 401, 408, 409, 429].includes(this.status) || this.status >= 500;
  }

  /** What happened, in a short sentence. */
  get title() {
    const titles = {
      0: "The service does not answer.",
      400: "The service cannot draw this.",
      401: apiKey.value ? "The service does not accept this key." : "This service asks for a key.",
      403: "The key does not allow this.",
      404: "The service does not know this.",
      408: "It took too long.",
      409: "It was cancelled.",
      413: "This is more than the service takes.",
      429: "Too much at once.",
      503: "The service cannot draw just now.",
    };
    return titles[this.status] ?? (this.status >= 500 ? "Something went wrong in the service." : titles[400]);
  }

  /** The reason and what to do, in one or two more sentences. */
  get detail() {
    const said = sentence(this.message, this.param);
    if (this.status === 0) return said || "Is it running, and are you connected?";
    if (this.status === 401) return apiKey.value ? "Enter another one above." : "Enter it above.";
    if (this.status === 500 && this.requestId) return `${said} Its operator can look up ${this.requestId}.`.trim();
    if (this.status === 429 && this.retryAfter === null) return said || "Try again in a moment.";
    if (this.status === 503) return said || "It may be starting.";
    return said;
  }
}

/** A refusal of a text that has too many tokens, in words of the text; null for any other refusal. */
export function tooLong({ message, param }, text) {
  const [, tokens, limit] = /has (\d+) tokens; the limit is (\d+)/.exec(message) ?? [];
  if (!tokens) return null;
  const words = text.trim().split(/\s+/).length;
  const [count, unit] = words > 4 ? [words, "words"] : [[...text].length, "characters"];
  const fitting = Math.max(1, Math.floor((count * limit) / tokens));
  const name = param === "negative_prompt" ? "negative prompt" : "prompt";
  return `The ${name} has ${count} ${unit}, and about ${fitting} fit: make it shorter.`;
}

/** The service's message as a sentence. The name of a parameter at its start stays as it is. */
function sentence(text, param) {
  const words = text.trim();
  if (!words) return "";
  const start = param && words.startsWith(param) ? words[0] : words[0].toUpperCase();
  return start + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");
}

/** The service's address with a path behind it, wherever the page is mounted. */
export function address(path) {
  return new URL(path, document.baseURI).href;
}

/** Cards of all models, at least one, the default first. */
export async function listModels() {
  const { data } = await (await call("v1/models")).json();
  if (!data.length) throw new ServiceError(503, { message: "No model is loaded yet." });
  return data;
}

/** A model with what it knows: {description, examples, styles, concepts} besides the fields of its card. */
export async function describeModel(name) {
  return (await call(`v1/models/${encodeURIComponent(name)}`)).json();
}

/**
 * Draws, and yields the service's events as they come: previews, finished pictures.
 *
 * endpoint: generations, edits or variations. fields: as the service names them. image: a Blob, where one is sent. mask: a Blob
 * of its size, transparent where it is drawn anew; with it, or without.
 * onStart: called with {id, ahead, estimate} when the request is accepted.
 */
export async function* draw(endpoint, { fields, image, mask, signal, onStart }) {
  const answer = await call(`v1/images/${endpoint}`, { method: "POST", signal, ...body(fields, image, mask) });
  const number = (name) => (answer.headers.has(name) ? Number(answer.headers.get(name)) : null);
  const id = answer.headers.get("X-Job-Id");
  onStart({ id, ahead: number("X-Queue-Position"), estimate: number("X-Estimate-Seconds") });
  for await (const { data } of serverSentEvents(answer.body, signal)) {
    const event = JSON.parse(data);
    if (event.error) throw new ServiceError(STATUSES[event.error.code] ?? 500, { ...event.error, requestId: id });
    yield event;
  }
}

/** The page that explains a picture of the service, a PNG with its receipt, as text. */
export async function explain(image, signal) {
  const form = new FormData();
  form.append("image", image, "picture.png");
  return (await call("v1/images/explanations", { method: "POST", body: form, signal })).text();
}

/** Cancels a request. Errors are ignored: the caller closes its stream too, which also cancels it. */
export function cancel(id) {
  return call(`v1/requests/${encodeURIComponent(id)}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

function body(fields, image, mask) {
  if (!image) return { headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields) };
  const form = new FormData();
  form.append("image", image, "picture.png");
  if (mask) form.append("mask", mask, "mask.png");
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined) form.append(name, String(value));
  }
  return { body: form };
}

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  try {
    if (apiKey.value) headers.set("Authorization", `Bearer ${apiKey.value}`);
  } catch {
    throw new ServiceError(401); // it has characters that no header can have
  }
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers, credentials: "same-origin" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServiceError(0);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    // The body is a proxy's page, or empty: only the status is known.
  }
  return new ServiceError(answer.status, {
    message: error.message ?? "",
    param: error.param ?? null,
    retryAfter: seconds(answer.headers.get("Retry-After")),
    requestId: answer.headers.get("X-Request-Id"),
  });
}

/** Seconds from now in a Retry-After header, which has seconds or a date; null without one. */
function seconds(header) {
  if (!header) return null;
  const until = Number.isNaN(Number(header)) ? (Date.parse(header) - Date.now()) / 1000 : Number(header);
  return Number.isFinite(until) ? Math.max(0, Math.ceil(until)) : null;
}

/** Events of a stream as {event, data}; comments and events without data are skipped. */
async function* serverSentEvents(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (waiting + value).split(/\r?\n\r?\n/);
      waiting = blocks.pop();
      for (const block of blocks) {
        const parsed = parseEvent(block);
        if (parsed.data) yield parsed;
      }
    }
  } catch (error) {
    if (signal?.aborted || error instanceof ServiceError) throw error;
    throw new ServiceError(0, { message: "The connection broke off while it was drawing." });
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "event") event = value;
    if (name === "data") data.push(value);
  }
  return { event, data: data.join("\n") };
}
