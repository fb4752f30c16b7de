/** Pictures that outlive the page, in IndexedDB. Where the browser forbids that, they live as long as the page. */

const DATABASE = "dalle";
const PICTURES = "pictures";

/**
 * Pictures by `key`, a number that `add` gives out. `lasting`: whether they outlive the page. `onChange` is called when
 * another tab has changed them.
 */
export async function openStore(onChange) {
  try {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(PICTURES, { keyPath: "key", autoIncrement: true });
    return new LastingStore(await result(opening), onChange);
  } catch {
    return new PassingStore();
  }
}

class LastingStore {
  lasting = true;

  constructor(database, onChange) {
    this.database = database;
    this.tabs = new BroadcastChannel(DATABASE);
    this.tabs.onmessage = onChange;
  }

  all() {
    return this.run("readonly", (pictures) => pictures.getAll());
  }

  /** Gives the picture its key, unless it has one. Rejects when the browser has no room left. */
  async add(picture) {
    picture.key = await this.change((pictures) => pictures.put(picture));
  }

  async remove(picture) {
    // One that found no room was never kept.
    if (picture.key !== undefined) await this.change((pictures) => pictures.delete(picture.key));
  }

  clear() {
    return this.change((pictures) => pictures.clear());
  }

  async change(request) {
    const answer = await this.run("readwrite", request);
    this.tabs.postMessage("changed");
    return answer;
  }

  run(mode, request) {
    return result(request(this.database.transaction(PICTURES, mode).objectStore(PICTURES)));
  }
}

class PassingStore {
  lasting = false;
  next = 1;

  async all() {
    return [];
  }

  async add(picture) {
    picture.key ??= this.next++;
  }

  async remove() {}

  async clear() {}
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
