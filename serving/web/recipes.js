/** How to draw a picture again from elsewhere: as a curl command, and as Python with the `openai` package. */

import { address, apiKey } from "./api.js";

const KEY_VARIABLE = "DALLE_API_KEY";
/** Parameters that the methods of the `openai` package have; ours go into `extra_body`. */
const OPENAI = {
  generations: ["model", "prompt", "n", "background"],
  edits: ["model", "prompt", "n", "background"],
  variations: ["model", "n"],
};
const METHODS = { generations: "generate", edits: "edit", variations: "create_variation" };

/** Fields that draw this one picture of its request. */
export function recipe(picture) {
  const { fields, seed, index } = picture;
  return { ...fields, n: 1, seed, ...(index && { first_index: index }) };
}

/** A file name that tells a picture: its words, its seed and its index. */
export function fileName(picture) {
  const words = picture.fields.prompt ?? "";
  const slug = words.toLowerCase().match(/[a-z0-9]+/g)?.join("-").slice(0, 40).replace(/-$/, "") ?? "picture";
  return `${slug}-${picture.seed}-${picture.index}.png`;
}

export function asCurl(picture) {
  const fields = recipe(picture);
  const lines = [`curl ${quote(address(`v1/images/${picture.endpoint}`))}`];
  if (apiKey.value) lines.push(`-H "Authorization: Bearer $${KEY_VARIABLE}"`);
  if (picture.source) {
    lines.push(`-F ${quote(`image=@${picture.source}`)}`);
    if (picture.sourceMask) lines.push("-F 'mask=@mask.png'");
    // Not -F, for which a value that begins with @ or < is a file.
    for (const [name, value] of Object.entries(fields)) lines.push(`--form-string ${quote(`${name}=${value}`)}`);
  } else {
    lines.push("-H 'Content-Type: application/json'", `-d ${quote(JSON.stringify(fields))}`);
  }
  return `${lines.join(" \\\n  ")} |\n  jq -r '.data[0].b64_json' | base64 -d > ${quote(fileName(picture))}\n`;
}

export function asPython(picture) {
  const known = OPENAI[picture.endpoint];
  const fields = Object.entries(recipe(picture));
  const own = fields.filter(([name]) => known.includes(name)).map(([name, value]) => `${name}=${literal(value)}`);
  const extra = fields.filter(([name]) => !known.includes(name)).map(([name, value]) => `"${name}": ${literal(value)}`);
  if (picture.source) own.unshift(`image=open(${literal(picture.source)}, "rb")`);
  if (picture.sourceMask) own.splice(1, 0, 'mask=open("mask.png", "rb")');
  const key = apiKey.value ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return `import base64
${apiKey.value ? "import os\n" : ""}
from openai import OpenAI

client = OpenAI(base_url=${literal(address("v1"))}, api_key=${key})
answer = client.images.${METHODS[picture.endpoint]}(
    ${own.join(",\n    ")},
    extra_body={${extra.join(", ")}},
)
with open(${literal(fileName(picture))}, "wb") as file:
    file.write(base64.b64decode(answer.data[0].b64_json))
`;
}

/** For a POSIX shell, which takes everything between single quotes as it is, but for these. */
function quote(text) {
  return `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

/** Strings and numbers are written alike in JSON and in Python. */
function literal(value) {
  return JSON.stringify(value);
}
