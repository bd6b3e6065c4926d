// The page's behaviour: what the user chooses becomes one question to the server, its answer becomes the page.

import * as api from "./api.js";
import { filesOf, sortByDoubt } from "./gallery.js";
import * as memory from "./memory.js";
import { Picture } from "./picture.js";
import { Regions } from "./segment.js";
import * as view from "./view.js";

const $ = (id) => document.getElementById(id);
const TOP_CLUSTERS = 8;

// What is asked now. target and contrast are class ids as text, or "" for the server's choice.
const question = { model: "", target: "", contrast: "", method: "", stage: "", colormap: "", groups: "", check: "", top_clusters: TOP_CLUSTERS };
let photo = null; // the File that is shown
let models = new Map();
let running = null; // the AbortController of the question under way
let answers = new Map(); // of this photo, by question

const regions = new Regions();
const picture = new Picture($("picture"), view.markCluster);

/** Asks about `file` with the question as it stands and shows the answer; a problem leaves the page as it was. */
async function ask(file, changes = {}) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const next = { ...question, ...changes };
  view.showProblem(null);
  view.showBusy(true);
  try {
    if (segments(next.model)) return await segment(file, next, signal);
    const known = file === photo && answers.get(JSON.stringify(next));
    const answer = known || (await api.explain(next, file, signal));
    const details = await modelNamed(answer.model);
    if (signal.aborted) return;
    if (file !== photo || $("result").hidden) await showPhoto(file, answer);
    Object.assign(question, next);
    memory.remember(question);
    answers.set(JSON.stringify(next), answer);
    show(answer, details);
  } catch (error) {
    if (signal.aborted) return;
    if (photo) view.showModel(modelFor(question.model)?.name);
    if (photo && !$("result").hidden) showChoices();
    view.showProblem(error, () => ask(file, changes));
  } finally {
    if (!signal.aborted) view.showBusy(false);
  }
}

// The model that answers when this one is chosen.
const modelFor = (name) => models.get(name) ?? [...models.values()].find((model) => model.default);

const segments = (name) => modelFor(name)?.jobs.includes("segment") ?? false;

async function segment(file, next, signal) {
  const answer = await api.segment(next.model, file, signal);
  const details = await modelNamed(answer.model);
  if (signal.aborted) return;
  const said = await regions.show(file, answer, details);
  Object.assign(question, next);
  memory.remember(question);
  if (file !== photo) {
    answers = new Map();
    memory.keepPhoto(file);
  }
  photo = file;
  view.showSection("segmented", gallery.size > 0);
  $("regions-curl").textContent = api.segmentCurl(question.model, file);
  $("regions-answer").focus({ preventScroll: true });
  view.showModel(answer.model);
  view.say(said);
}

// The list is read again where the server has meanwhile loaded a model that was not there at the start.
async function modelNamed(name) {
  if (!models.has(name)) await loadModels();
  return models.get(name);
}

// What of the model's groups is shown first: its clusters, or parts where it has none.
const groupsFor = (name) => (models.get(name)?.stages.some(({ clusters }) => clusters > 0) === false ? "parts" : "");

async function loadModels() {
  const loaded = await api.models();
  models = new Map(loaded.map((model) => [model.name, model]));
  view.showModels(loaded);
  const chosen = models.get(question.model) ?? loaded.find((model) => model.default) ?? loaded[0];
  if (chosen) view.showKnown(chosen);
}

async function showPhoto(file, answer) {
  const old = $("photo").src;
  await picture.setPhoto(URL.createObjectURL(file), `The photo: ${answer.predictions[0].label}`);
  if (old) URL.revokeObjectURL(old);
  photo = file;
  answers = new Map();
  memory.keepPhoto(file);
  view.showSection("result", gallery.size > 0);
  $("answer").focus({ preventScroll: true });
}

let shown = null; // the answer on the page and its model

function show(answer, details) {
  shown = { answer, details };
  const [explanation] = answer.explanations;
  picture.setExplanation(explanation, answer.image);
  view.showExplanation(explanation, answer.warnings ?? [], details.method_details);
  light(null);
  view.showClusters(explanation, {
    onLight: light,
    onPick: (cluster) => {
      light(cluster);
      $("picture").scrollIntoView({ block: "nearest" });
    },
  });
  view.showTimings(answer.timings_ms);
  $("curl").textContent = api.curl(question, photo);
  showChoices();
  const [best] = answer.predictions;
  view.say(`${best.label}, ${Math.round(100 * best.score)} percent. Explained: ${explanation.target?.label ?? "grouping"}.`);
}

function light(cluster) {
  picture.light(cluster);
  view.markCluster(cluster);
}

// Puts every picker where the shown answer says it is.
function showChoices() {
  const { answer, details } = shown;
  const target = answer.explanations[0].target?.class_id ?? answer.predictions[0].class_id;
  view.showPredictions(answer, target, ({ class_id: id }) => askClass(id));
  view.showClasses(details.labels, answer.predictions, target, question.contrast);
  const clustering = details.stages.filter(({ clusters }) => clusters > 0);
  const { kind } = api.groupsOf(answer.explanations[0]);
  view.showStages(kind === "part" ? [] : clustering, answer.explanations[0].clusters[0]?.stage);
  view.showGroups(clustering, kind);
  view.showMethods(details.method_details, answer.explanations[0].method.name);
  view.showModel(answer.model);
}

function askClass(id) {
  const contrast = question.contrast === String(id) ? "" : question.contrast;
  ask(photo, { target: String(id), contrast, check: "" });
}

/** A new photo: the class is the server's choice again, method and model stay. */
function open(file) {
  if (file) ask(file, { target: "", contrast: "", check: "" });
}

let gallery = new Map(); // file → address of its picture, of the photos that came together

/** Several photos: each is named, and one that is picked is explained. A model that segments takes the first. */
async function openAll(files) {
  if (files.length < 2 || segments(question.model)) {
    open(files[0]);
    return;
  }
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  for (const address of gallery.values()) URL.revokeObjectURL(address);
  gallery = new Map(files.map((file) => [file, URL.createObjectURL(file)]));
  view.showProblem(null);
  view.showBusy(true);
  view.showSection("gallery", true);
  try {
    await sortByDoubt(files, question.model, signal, (...named) => view.showGallery(...named, { thumbnails: gallery, onPick: open }));
    $("gallery-title").focus({ preventScroll: true });
  } catch (error) {
    if (!signal.aborted) view.showProblem(error, () => openAll(files));
  } finally {
    if (!signal.aborted) view.showBusy(false);
  }
}

async function openSample(name) {
  const response = await fetch(new URL(name, document.baseURI));
  open(new File([await response.blob()], name, { type: "image/webp" }));
}

/** Saves what `make` resolves to, under the photo's name with this ending. */
async function download(make, ending) {
  try {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await make());
    link.download = `${photo.name.replace(/\.[^.]*$/, "")}-${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    view.showProblem(error, () => download(make, ending));
  }
}

function savePicture() {
  const { predictions, explanations } = shown.answer;
  const explained = explanations[0].target?.class_id ?? predictions[0].class_id;
  const prediction = predictions.find(({ class_id: id }) => id === explained);
  const caption = prediction ? `${prediction.label} ${view.percent(prediction.score)}` : explanations[0].target.label;
  return picture.save(`${caption} · PaCa`);
}

async function copyCurl() {
  getSelection().selectAllChildren($("curl"));
  // navigator.clipboard exists on secure addresses only
  if (navigator.clipboard) await navigator.clipboard.writeText($("curl").textContent);
  else document.execCommand("copy");
  view.say("Copied");
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy as curl"), 2000);
}

function showColours(name) {
  if (!name) return;
  $("colours").value = name;
  view.showColour(name);
  picture.setColours(name);
}

function listen() {
  for (const id of ["choose", "another"]) $(id).addEventListener("click", () => $("file").click());
  $("all-photos").addEventListener("click", () => view.showSection("gallery", true));
  $("file").addEventListener("change", ({ target }) => {
    openAll([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });
  $("sample").addEventListener("click", () => openSample("sample.webp"));
  $("samples").addEventListener("click", ({ target }) => target.dataset.sample && openSample(target.dataset.sample));
  $("target").addEventListener("change", ({ target }) => askClass(Number(target.value)));
  $("contrast").addEventListener("change", ({ target }) => ask(photo, { contrast: target.value, check: "" }));
  $("stage").addEventListener("change", ({ target }) => ask(photo, { stage: target.value }));
  $("methods").addEventListener("change", ({ target }) => ask(photo, { method: target.value, check: "" }));
  $("groups").addEventListener("change", ({ target }) => ask(photo, { groups: target.value }));
  $("check").addEventListener("click", () => ask(photo, { check: "true" }));
  $("model").addEventListener("change", ({ target }) => {
    if (photo) ask(photo, { model: target.value, target: "", contrast: "", stage: "", check: "", groups: groupsFor(target.value) });
    else {
      Object.assign(question, { model: target.value, groups: groupsFor(target.value) });
      view.showKnown(models.get(target.value));
    }
  });
  $("opacity").addEventListener("input", ({ target }) => {
    picture.setOpacity(target.value / 100);
    $("opacity-value").textContent = `${target.value} %`;
  });
  $("colours").addEventListener("change", ({ target }) => {
    question.colormap = target.value; // the page paints by itself: only the report and the curl line need it
    memory.remember(question);
    showColours(target.value);
    $("curl").textContent = api.curl(question, photo);
  });
  $("copy").addEventListener("click", copyCurl);
  $("regions-save").addEventListener("click", () => download(() => regions.save(), "regions.png"));
  $("save").addEventListener("click", () => download(savePicture, "explained.png"));
  $("report").addEventListener("click", () => download(() => api.report(question, photo), "report.html"));
  addEventListener("popstate", () => photo && ask(photo, { ...memory.settings(), check: "" }));
  document.addEventListener("paste", ({ clipboardData }) => open(clipboardData.files[0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    filesOf(event.dataTransfer).then(openAll);
  });
}

async function start() {
  try {
    Object.assign(question, memory.settings());
    await loadModels();
    view.showProblem(null);
    const kept = memory.keptPhoto();
    if (kept) {
      await ask(kept);
      showColours(question.colormap);
    }
  } catch (error) {
    view.showProblem(error, start);
  }
}

listen();
view.showColours();
start();
