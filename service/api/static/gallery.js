// Many photos at once: has them named in a few requests and shows them, the most doubtful first. What is done with the one that is picked is the page's.

import * as api from "./api.js";

const PHOTOS = 8; // of one request; the server takes 16
const BYTES = 16e6; // of one request, unless a single photo has more

/** The files of a drop, those in dropped folders too. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(walk))).flat();
}

async function walk(entry) {
  if (entry.name.startsWith(".")) return [];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (some.length === 0) return (await Promise.all(found.map(walk))).flat();
    found.push(...some);
  }
}

function batches(files) {
  const all = [];
  let size = Infinity;
  for (const file of files) {
    if (size + file.size > BYTES || all.at(-1).length === PHOTOS) {
      all.push([]);
      size = 0;
    }
    all.at(-1).push(file);
    size += file.size;
  }
  return all;
}

/** How doubtful an answer is: novel pictures first, then those with a low score; what could not be read comes last. */
function doubt({ novelty, predictions }) {
  if (!predictions) return -1;
  return (novelty?.is_novel ? 1 : 0) + 1 - predictions[0].score;
}

/** Names the files; onSome([{file, answer}, …], done, all) after each request, sorted. An answer is a reply or a problem. */
export async function sortByDoubt(files, model, signal, onSome) {
  const named = [];
  for (const some of batches(files)) {
    const answers = await api.classify(some, model, signal);
    named.push(...some.map((file, i) => ({ file, answer: answers[i] })));
    named.sort((a, b) => doubt(b.answer) - doubt(a.answer));
    onSome(named, named.length, files.length);
  }
}
