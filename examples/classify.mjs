// Classify and explain photos from JavaScript (browser, Node 18+, Deno, Bun): fetch is all it takes.
// As a program: PACA_URL=http://127.0.0.1:8000 node classify.mjs photo.jpg

/** Asks again after a 503, as long as its Retry-After says; anything else that is refused is thrown. */
export async function ask(url, body, { accept = "application/json", attempts = 5 } = {}) {
  for (let left = attempts; ; left--) {
    const response = await fetch(url, { method: "POST", body, headers: { Accept: accept } });
    if (response.ok) return response;
    const problem = await response.json();
    if (response.status !== 503 || left === 1) throw new Error(`${problem.title}: ${problem.detail}`);
    await new Promise((done) => setTimeout(done, 1000 * Number(response.headers.get("Retry-After") ?? 1)));
  }
}

/** photo: a Blob or File. The answer is the JSON that the API describes. */
export const classify = async (server, photo, topK = 5) => (await ask(`${server}/classify?top_k=${topK}`, photo)).json();

/** The heatmap on the photo, as a Blob that an <img> can show: img.src = URL.createObjectURL(blob). */
export const overlay = async (server, photo) => (await ask(`${server}/explain`, photo, { accept: "image/webp" })).blob();

if (globalThis.process?.argv[2]) {
  const { readFile } = await import("node:fs/promises");
  const server = process.env.PACA_URL ?? "http://127.0.0.1:8000";
  const photo = new Blob([await readFile(process.argv[2])]);
  for (const { label, score } of (await classify(server, photo, 3)).predictions) console.log(`${(100 * score).toFixed(1)} %  ${label}`);
  console.log(`overlay: ${(await overlay(server, photo)).size} bytes`);
}
