// Writes an answer into the page. Knows the page's elements and the answer's fields, asks for nothing and keeps nothing.

import { groupsOf } from "./api.js";
import { COLOUR_MAPS } from "./colours.js";
import { ramp } from "./heatmap.js";

const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Replaces the children; the keyboard's focus stays at its place among them.
function refill(container, ...children) {
  const places = () => [...container.querySelectorAll("button, input")];
  const place = places().indexOf(document.activeElement);
  container.replaceChildren(...children);
  if (place >= 0) places()[place]?.focus();
}

export const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const extent = (area) => (area > 0 && area < 0.005 ? "under 1 %" : percent(area, 0));
const number = (value) => (Math.abs(value) < 0.005 && value !== 0 ? value.toExponential(0) : value.toFixed(2)).replace("-", "−");
const signed = (value) => (value < 0 ? number(value) : `+${number(value)}`);

/** A thin bar, `part` of 1 long; the text beside it says the same. */
function bar(part) {
  const fill = element("span");
  fill.style.width = `${100 * Math.min(1, Math.max(0, part))}%`;
  return element("span", { className: "bar", ariaHidden: "true" }, fill);
}

/** The model picker; hidden where there is no choice. */
export function showModels(models) {
  $("model-field").hidden = models.length < 2;
  $("model").replaceChildren(...models.map(({ name, default: chosen }) => new Option(name, name, chosen, chosen)));
}

const CHIPS = 24; // class names shown before a search is offered

/** Before the first photo: what the model can name. */
export function showKnown({ labels, accuracy, novelty }) {
  $("known").hidden = false;
  $("samples").hidden = !(labels.includes("church") && labels.includes("golf ball")); // they are about the embedded model
  $("known-title").textContent = labels.length === 1 ? "This model knows one thing" : `This model knows ${labels.length} things`;
  $("known-search").hidden = labels.length <= CHIPS;
  const top1 = accuracy?.validation?.accuracy;
  const catches = novelty?.measured?.flagged_foreign;
  $("known-note").textContent = [
    "It names the nearest of them, whatever the photo shows.",
    ...(top1 ? [`Of 100 photos of them it names about ${Math.round(100 * top1)} rightly.`] : []),
    ...(catches ? [`It finds ${Math.round(10 * catches)} of 10 photos of other things to be none of them.`] : []),
  ].join(" ");
  const show = (words) => {
    const found = labels.filter((label) => label.toLowerCase().includes(words.trim().toLowerCase()));
    const rest = found.length - CHIPS;
    $("known-labels").replaceChildren(
      ...found.slice(0, CHIPS).map((textContent) => element("li", { textContent })),
      ...(rest > 0 ? [element("li", { className: "rest", textContent: `and ${rest} more` })] : []),
    );
  };
  $("known-find").value = "";
  $("known-find").oninput = ({ target }) => show(target.value);
  show("");
}

/** Every photo with its name, as far as they are named; onPick(file) where one is pressed. thumbnails: file → address of its picture. */
export function showGallery(named, done, all, { thumbnails, onPick }) {
  $("gallery-title").textContent = done < all ? `${done} of ${all} photos` : `${all} photos`;
  refill(
    $("gallery-photos"),
    ...named.map(({ file, answer: { predictions, novelty, detail } }) => {
      const [best] = predictions ?? [];
      const novel = Boolean(novelty?.is_novel);
      const says = best ? (novel ? `Not sure: ${best.label}?` : best.label) : detail;
      const button = element(
        "button",
        { type: "button", className: novel ? "doubtful" : "", disabled: !best, onclick: () => onPick(file) },
        element("img", { src: thumbnails.get(file), alt: "", loading: "lazy" }),
        element("span", { className: "name", textContent: says }),
        element("span", { className: "value", textContent: best ? percent(best.score, 0) : "" }),
        element("span", { className: "small", textContent: file.name }),
      );
      return element("li", {}, button);
    }),
  );
  if (done === all) say(`${all} photos, the most doubtful first`);
}

/** Shows one of: welcome, gallery, result, segmented. withGallery: whether there is a gallery to go back to. */
export function showSection(name, withGallery) {
  for (const id of ["welcome", "gallery", "result", "segmented"]) $(id).hidden = id !== name;
  $("another").hidden = name === "welcome";
  $("all-photos").hidden = !(withGallery && ["result", "segmented"].includes(name));
}

/** Puts the picker at the model that answered. */
export function showModel(name) {
  $("model").value = name;
}

/** The answer's headline and one button for each class; onPick(prediction) where one is pressed. `selected`: the class id that is explained. */
export function showPredictions({ predictions, novelty, model, model_version: version }, selected, onPick) {
  const novel = Boolean(novelty?.is_novel);
  const [best] = predictions;
  $("answer").textContent = novel ? `Not sure: ${best.label}?` : best.label;
  $("answer-model").textContent = `${model} · version ${version}`;
  $("doubt").hidden = !novel;
  if (novel) {
    $("doubt").textContent =
      `Probably none of the things this model knows: ${percent(novelty.score)} of known photos look less unusual. If it had to be one of them:`;
  }
  $("predictions").classList.toggle("doubtful", novel);
  document.title = `${novel ? "Not sure" : best.label} · PaCa`;
  refill(
    $("predictions"),
    ...predictions.map((prediction) => {
      const button = element(
        "button",
        { type: "button", ariaPressed: String(prediction.class_id === selected), onclick: () => onPick(prediction) },
        element("span", { className: "name", textContent: prediction.label }),
        element("span", { className: "value", textContent: percent(prediction.score) }),
        bar(prediction.score),
      );
      return element("li", {}, button);
    }),
  );
}

/** Fills the class and contrast pickers; `target` and `contrast` are class ids, contrast may be "" or "runner_up". */
export function showClasses(labels, predictions, target, contrast) {
  const option = (id) => element("option", { value: String(id), textContent: labels[id] });
  const groups = () => [
    element("optgroup", { label: "Most likely" }, ...predictions.map(({ class_id: id }) => option(id))),
    element("optgroup", { label: "All classes" }, ...labels.map((_, id) => option(id))),
  ];
  $("target").replaceChildren(...groups());
  $("target").value = String(target);
  $("contrast").replaceChildren(
    element("option", { value: "", textContent: "anything else" }),
    element("option", { value: "runner_up", textContent: "the runner-up" }),
    ...groups(),
  );
  for (const same of $("contrast").querySelectorAll(`option[value="${target}"]`)) same.disabled = true;
  $("contrast").value = String(contrast);
}

/** One radio button for each method the model offers, as `/models` describes them. */
export function showMethods(offered, chosen) {
  refill(
    $("methods"),
    ...offered.map(({ name: value, label }) => {
      const radio = element("input", { type: "radio", name: "method", value, checked: value === chosen });
      return element("label", {}, radio, element("span", { textContent: label }));
    }),
  );
}

/** Clusters or parts; hidden where the model has no clusters, so that there is no choice. */
export function showGroups(stages, kind) {
  $("groups-field").hidden = stages.length === 0;
  $("groups").value = `${kind}s`;
}

/** The stages whose clusters can be shown; hidden where there is no choice. */
export function showStages(stages, chosen) {
  $("stage-field").hidden = stages.length < 2;
  $("stage").replaceChildren(...stages.map(({ stage, grid }) => new Option(`${stage} (${grid.join(" × ")})`, stage)));
  $("stage").value = String(chosen);
}

/** The colour maps to choose from. */
export function showColours() {
  $("colours").replaceChildren(...COLOUR_MAPS.map(({ name, note }) => Object.assign(new Option(name, name), { title: note })));
  showColour(COLOUR_MAPS[0].name);
}

/** The legend in this colour map. */
export function showColour(name) {
  $("ramp").style.setProperty("--ramp", ramp(name));
}

/** What the check found, in words; null where none was asked for. */
function showCheck(check) {
  $("check").hidden = Boolean(check);
  $("check-says").hidden = !check;
  $("check-says").classList.toggle("failed", check?.passed === false);
  if (!check) return;
  const { score, drop, random_drop: randomDrop, passed } = check;
  const [before, after, random] = [score, score - drop, score - randomDrop].map((value) => percent(value, 0));
  const verdict = passed ? "The map points at what the answer rests on." : "The map does no better than chance here: do not trust it.";
  $("check-says").textContent =
    `Hiding what the map shows takes the answer from ${before} to ${after}; hiding as much at random places, to ${random}. ${verdict}`;
}

/** What the map shows, what it adds up to, and the warnings. methods: as `/models` describes them. */
export function showExplanation({ method, completeness, heatmap, contrast, target, check, fading }, warnings, methods) {
  showCheck(check);
  if (!heatmap) $("check").hidden = true;
  $("fading").hidden = !fading?.reasons.length;
  if (fading) $("fading").textContent = `The overlay is drawn at ${percent(fading.strength, 0)} of its strength: ${fading.reasons.join("; ")}.`;
  const { label, note } = methods.find(({ name }) => name === method.name);
  $("method-note").textContent = method.fallback ? `${label}: ${method.fallback}` : note;
  $("legend").hidden = !heatmap;
  if (heatmap) {
    const { min, max, units } = heatmap.scale;
    const most = Math.max(max, -min);
    const inLogits = units === "logit";
    $("ramp").classList.toggle("signed", heatmap.signed);
    $("colours").hidden = heatmap.signed;
    $("legend-min").textContent = heatmap.signed ? (inLogits ? `−${number(most)}` : "against") : "little";
    $("legend-max").textContent = heatmap.signed ? (inLogits ? `+${number(most)} logit` : "in favour") : "much";
  }
  $("completeness").hidden = !completeness;
  if (completeness) {
    const { sum_contributions: sum, bias, logit, residual } = completeness;
    const what = contrast ? `${target.label} over ${contrast.label}` : target.label;
    $("completeness").textContent =
      `Adds up: patches ${number(sum)} + bias ${number(bias)} = logit ${number(logit)} for ${what} (residual ${Math.abs(residual).toExponential(0)}).`;
  }
  // What is said elsewhere on the page, in its own words, is not said twice.
  const others = warnings.filter((text) => !/^(the map for .* is not to be trusted|this picture is less like)/.test(text));
  $("warnings").hidden = others.length === 0;
  $("warnings").replaceChildren(...others.map((textContent) => element("li", { textContent })));
}

const capital = (word) => word[0].toUpperCase() + word.slice(1);

/** The list of groups in the answer's order, strongest first; onLight(cluster | null) while one is pointed at or focused, onPick where one is pressed. */
export function showClusters(explanation, { onLight, onPick }) {
  const { method, target } = explanation;
  const { kind, items: clusters } = groupsOf(explanation);
  $("clusters-title").textContent = `${capital(kind)}s`;
  $("clusters").dataset.kind = kind;
  const size = ({ share, area }) => (method.class_specific ? share : area);
  const most = Math.max(...clusters.map((cluster) => Math.abs(size(cluster))), 1e-9);
  $("clusters-note").textContent = method.class_specific
    ? `${kind === "part" ? "what looks alike to the model, " : ""}by the evidence for ${target.label} that lies in them`
    : "the largest groups of patches, whatever the class";
  $("clusters").replaceChildren(
    ...clusters.map((item) => {
      const { cluster, area, overlay } = item;
      const covers = `${extent(area)} of the picture`;
      const button = element(
        "button",
        { type: "button", onpointerenter: () => onLight(cluster), onpointerleave: () => onLight(null), onfocus: () => onLight(cluster), onblur: () => onLight(null), onclick: () => onPick(cluster) },
        element("img", { src: `data:${overlay.mime};base64,${overlay.data}`, alt: "", width: overlay.width, height: overlay.height }),
        element("span", { className: "name", textContent: `${capital(kind)} ${cluster}` }),
        element("span", { className: "value", textContent: method.class_specific ? signed(item.share) : extent(area) }),
        bar(Math.abs(size(item)) / most),
        element("span", { className: "small", textContent: method.class_specific ? covers : "of the picture" }),
      );
      button.dataset.cluster = cluster;
      button.dataset.says = method.class_specific ? `${signed(item.share)} logit` : covers;
      return element("li", {}, button);
    }),
  );
}

/** Marks the card of the cluster under the pointer; the tag on the photo says its name. */
export function markCluster(cluster, patch) {
  const listed = $("clusters").querySelector(`[data-cluster="${cluster}"]`);
  for (const card of $("clusters").querySelectorAll("button")) card.classList.toggle("lit", card === listed);
  $("tag").hidden = cluster === null;
  if (cluster === null) return;
  const share = listed?.dataset.says;
  const listing = $("clusters").children.length;
  $("tag").textContent = `${capital($("clusters").dataset.kind)} ${cluster} · ${share ?? `not among the ${listing} strongest`}`;
  if (patch) say(`Row ${patch.row + 1}, column ${patch.column + 1}: ${$("tag").textContent}`);
}

/** The milliseconds of each step, as a bar and as a list. */
export function showTimings({ total, ...steps }) {
  const shown = Object.entries(steps).filter(([, value]) => value > 0);
  const sum = shown.reduce((all, [, value]) => all + value, 0) || 1;
  const track = element("div", { className: "track", ariaHidden: "true" });
  const list = element("dl");
  for (const [name, value] of [...shown, ["total", total]]) {
    const item = element("div", { className: name }, element("dt", { textContent: name }), element("dd", { textContent: `${value.toFixed(1)} ms` }));
    list.append(item);
    if (name === "total") continue;
    const part = element("span", { className: name });
    part.style.width = `${(100 * value) / sum}%`;
    track.append(part);
  }
  $("timings").replaceChildren(track, list);
}

/** The error banner, with "Try again" where that can help; null hides it. */
export function showProblem(problem, onRetry) {
  $("problem").hidden = !problem;
  if (!problem) return;
  const button = (textContent, onclick) => element("button", { type: "button", className: "button", textContent, onclick });
  const mayPass = !problem.status || problem.status >= 500;
  const again = problem.retryAfter ? `Try again in ${problem.retryAfter} s` : "Try again";
  $("problem").replaceChildren(
    element(
      "div",
      {},
      element("strong", { textContent: problem.title ?? "This page failed" }),
      element("p", { textContent: problem.message }),
      ...(problem.requestId ? [element("p", { className: "small", textContent: `Request ${problem.requestId}` })] : []),
    ),
    element("p", { className: "actions" }, ...(mayPass ? [button(again, onRetry)] : []), button("Dismiss", () => showProblem(null))),
  );
}

/** Says that a question is under way, or no longer. */
export function showBusy(busy) {
  document.body.classList.toggle("busy", busy);
  $("main").setAttribute("aria-busy", String(busy));
  if (busy) say("Working …");
}

/** Says something to screen readers. */
export function say(text) {
  $("status").textContent = text;
}
