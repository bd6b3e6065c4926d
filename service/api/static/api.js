// Talks to the server that served this page. Every address is relative to it, so a prefix (ROOT_PATH) needs no setting.

const address = (path) => new URL(path, document.baseURI);

/** A refusal of the server, as problem+json tells it; status 0 where no answer came at all. */
export class Problem extends Error {
  constructor({ title, detail, status = 0, request_id: requestId = null }, retryAfter = null) {
    super(detail || title);
    Object.assign(this, { title, detail, status, requestId, retryAfter });
  }
}

async function send(url, init) {
  let response;
  try {
    response = await fetch(url, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "No answer", detail: "The server cannot be reached. Is it still running?" });
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Problem({ title: `Error ${response.status}`, ...problem, status: response.status }, response.headers.get("Retry-After"));
}

/** The loaded models with their labels, stages and methods. */
export const models = async () => (await (await send(address("models"))).json()).models;

/** The address of one question; parameters that are null are left to the server's defaults. */
export function explainUrl(question) {
  const url = address("explain");
  const { groups, ...parameters } = question;
  if (groups && !parameters.render) parameters.render = `overlay,${groups}`;
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

function upload(question, file, accept, signal) {
  const body = new FormData();
  body.append("file", file, file.name);
  return send(explainUrl(question), { method: "POST", body, signal, headers: { Accept: accept } });
}

/** Prediction, evidence and clusters of one photo; raw arrays come too, so that the page itself can draw. */
export async function explain(question, file, signal) {
  const full = { ...question, render: question.groups || "clusters", arrays: "f16" };
  return (await upload(full, file, "application/json", signal)).json();
}

/** What the groups of an answer are: its parts where it has them, else its clusters. */
export function groupsOf({ clusters, parts }) {
  return parts ? { kind: "part", items: parts.map((part) => ({ ...part, cluster: part.part })) } : { kind: "cluster", items: clusters };
}

/** Names several photos: a reply or a problem for each, in order. */
export async function classify(files, model, signal) {
  const url = address("classify");
  if (model) url.searchParams.set("model", model);
  const body = new FormData();
  for (const file of files) body.append("file", file, file.name);
  const answer = await (await send(url, { method: "POST", body, signal, headers: { Accept: "application/json" } })).json();
  return answer.results ?? [answer];
}

/** The label map and the classes of one photo. */
export async function segment(model, file, signal) {
  const body = new FormData();
  body.append("file", file, file.name);
  return (await send(segmentUrl(model), { method: "POST", body, signal, headers: { Accept: "application/json" } })).json();
}

function segmentUrl(model) {
  const url = address("segment");
  if (model) url.searchParams.set("model", model);
  return url;
}

/** The self-contained HTML report, as a Blob. */
export const report = async (question, file) => (await upload(question, file, "text/html")).blob();

/** The same request as a shell command. */
export const curl = (question, file) => shell(explainUrl(question), file);

/** The same, of a segmentation. */
export const segmentCurl = (model, file) => shell(segmentUrl(model), file);

function shell(url, file) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  return `curl -F ${quote(`file=@${file.name}`)} \\\n  ${quote(url.href)}`;
}
