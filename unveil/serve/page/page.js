// The form: a text with blanks, the choices that the server offers, the runs they make, and the link to them.

import { Paper, blanks } from "./paper.js";
import { Run, Trouble, call, linked, opened, spelled, taken } from "./run.js";
import { Stage, calm, clip, dark, element, secs } from "./stage.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["block", "steps", "temperature", "seed", "length"];
const CODE = [
  ["Two blanks", `def read(path):
    try:
        with open([[8]]
            return f.read()
    except[[2]]
        return None`],
  ["One line", `import os

def make_folder(path):
    if not os.path.[[5]]
        os.mkdir(path)
    return os.path.abspath(path)`],
  ["Continue", `def is_even(n):
    """Return True if`],
];
const PROSE = [
  ["Ask", "Why is the sky blue? Answer in one sentence."],
  ["Two blanks", "The capital of France is[[2]], and people visit it for[[8]].\n"],
];
const SOON = 3000; // milliseconds between two looks for a server that is not there

let key = ""; // in memory only
let server = null; // the model's entry in /v1/models
let tab = "watch";
let runs = [];

const say = (words) => ($("live").textContent = words);

function notice(words, kind = "error") {
  $("notice").className = kind;
  $("notice").textContent = words;
}

const stages = { watch: new Stage($("watch"), say, notice), race: new Stage($("race"), say, notice) };
const busy = () => runs.some((run) => !run.over);

const paper = new Paper({ length: () => $("length").value, changed: edited, say });

function edited() {
  const some = blanks(paper.text).length > 0;
  $("verb").textContent = tab === "race" ? "Run both" : some ? "Unveil" : chatting() ? "Ask" : "Continue";
  if (!busy()) preview();
}

addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") $("ask").requestSubmit();
});

// Choices

const about = (kind, name) => server.unveil[kind].find((one) => one.name === name);
const chatting = () => !$("message").hidden && $("chat").checked;

function offer(select, choices, none) {
  const options = choices.map(({ name, about }) => element("option", { value: name, textContent: name, title: about }));
  select.replaceChildren(...(none ? [element("option", { value: "", textContent: none })] : []), ...options);
}

// `which`: decoder, or with, the one beside it. Both have a list, a sentence and fields for what can be set.
function knobs(which, given = {}) {
  const found = about("decoders", $(which).value);
  $(`${which}-about`).textContent = found?.about ?? "";
  const names = Object.entries(found?.options ?? {}).filter(([name]) => name !== "temperature"); // that has its field
  $(`${which}-knobs`).replaceChildren(...names.map(([name, usual]) => {
    const input = element("input", { name, id: `${which}-${name}`, placeholder: usual, value: given[name] ?? "" });
    return element("div", {}, element("label", { htmlFor: input.id }, name), input);
  }));
}

function spec(which = "decoder") {
  const given = [...$(`${which}-knobs`).querySelectorAll("input")].filter((input) => input.value.trim());
  return spelled($(which).value, Object.fromEntries(given.map((input) => [input.name, input.value.trim()])));
}

function choose(which, whole) {
  const [name, options] = taken(whole);
  if (name && !about("decoders", name)) return notice(`This server has no decoder called ${name}.`);
  $(which).value = name;
  return knobs(which, options);
}

function summary() {
  $("cache-about").textContent = about("caches", $("cache").value)?.about ?? "What suits the model best.";
  const value = (name, words) => $(name).value && words.replace("*", $(name).value);
  const said = [spec(), value("cache", "* cache"), value("block", "block *"), value("steps", "* steps"),
    value("temperature", "temperature *"), value("seed", "seed *")];
  $("chosen").textContent = said.filter(Boolean).join(" · ");
}

for (const which of ["decoder", "with"]) $(which).addEventListener("change", () => knobs(which));
for (const name of ["options", "beside", "chat"]) {
  $(name).addEventListener("change", () => {
    summary();
    paper.draw();
  });
}

// Runs

function request(text, more = {}) {
  const number = (name) => ($(name).value === "" ? {} : { [name]: Number($(name).value) });
  const filling = blanks(text).length > 0;
  const what = filling ? { prompt: text, blanks: true, logprobs: 5 }
    : chatting() ? { messages: [{ role: "user", content: text }], logprobs: true, top_logprobs: 5 }
      : { prompt: text, logprobs: 5 };
  return { model: server.id, ...what, max_tokens: Number($("length").value), decoder: spec(),
    ...($("cache").value && { cache: $("cache").value }), ...number("block"), ...number("steps"),
    ...(Number($("temperature").value) && number("temperature")), seed: Number($("seed").value),
    stream: true, stream_mode: "denoise", ...more };
}

function made(label, body) {
  const { attention, tokenizer, defaults, block } = server.unveil;
  const open = attention === "full" || (attention === "leader" && body.blanks); // every position sees every other
  return new Run(label, body, { model: server.id, tokenizer: tokenizer ?? server.id,
    cache: body.cache ?? defaults.cache ?? (open ? "recompute" : "causal"),
    block: body.block ?? defaults.block ?? (open ? null : block) });
}

function planned() {
  const { text } = paper;
  if (tab === "race") {
    const [first] = blanks(text);
    const before = first ? text.slice(0, first.start) : text;
    return [made("Diffusion", request(before)),
      made("Autoregressive", request(before, { decoder: "confidence", block: 1, cache: "causal", steps: undefined }))];
  }
  const body = request(text);
  const decoders = [body.decoder, ...($("with").value ? [spec("with")] : [])];
  return decoders.map((decoder) => made(`Decoder ${decoder}`, { ...body, decoder }));
}

// The text with its blanks veiled, before anything has been asked of the server.
function preview() {
  if (!server) return undefined;
  const { text } = paper;
  const plans = planned();
  const asked = bodies(plans);
  if (stages[tab].asked === asked) return layout(); // what is shown, or was run, is still what would be
  stages[tab].asked = asked;
  for (const run of plans) {
    const template = run.body.prompt ?? text;
    const veil = (size) => run.tokens.push(...Array(Math.min(Number(size), 2000)).fill({ text: "", blank: true }));
    let end = 0;
    for (const blank of blanks(template)) {
      run.tokens.push({ text: template.slice(end, blank.start), blank: false });
      veil(blank.high || blank.low || run.body.max_tokens);
      end = blank.end;
    }
    run.tokens.push({ text: template.slice(end), blank: false });
    if (!run.body.blanks) veil(run.body.max_tokens);
  }
  stages[tab].set(plans, tab === "race" ? "seconds" : "forwards");
  stages[tab].find(".about").textContent = tab === "watch" ? watching(plans[0]) : racing(text);
  return layout();
}

const bodies = (plans) => JSON.stringify(plans.map((run) => run.body));

function watching(run) {
  const what = `${run.blanks} ${run.body.blanks ? "blanks to fill" : "tokens to write"}.`;
  return `${what} At every forward pass the model guesses many of them and keeps the guesses it is surest of.`;
}

function racing(text) {
  if (!server.unveil.autoregressive) {
    return "This model has no autoregressive mode: it was not trained to write one token after the other.";
  }
  const single = taken(spec())[0] === "confidence" && !$("steps").value;
  return [
    `The same model twice: in blocks, in any order within them, with ${spec()}; and token by token from left to right.`,
    blanks(text).length && "That way one cannot see what follows a blank, so both continue the text before the first.",
    single && "confidence writes one token a forward unless Steps allows it fewer forwards.",
  ].filter(Boolean).join(" ");
}

function layout() {
  const held = document.activeElement;
  $("main").classList.toggle("wide", stages[tab].panes.length > 1);
  $("go").disabled = !server || busy() || (tab === "race" && !server.unveil.autoregressive);
  $("stop").hidden = !busy();
  $("beside").hidden = tab === "race";
  if (held === $("go") && busy()) $("stop").focus({ preventScroll: true }); // what is disabled loses the focus
  if (held === $("stop") && !busy()) $("go").focus({ preventScroll: true });
}

async function start() {
  if ($("go").disabled) return;
  notice("");
  remember();
  runs = planned();
  const stage = stages[tab];
  stage.asked = bodies(runs);
  stage.set(runs, tab === "race" ? "seconds" : "forwards");
  layout();
  const { parentElement: place } = stage.root;
  const low = place.getBoundingClientRect().top > innerHeight / 2;
  if (low) place.scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
  say("Running.");
  stage.begin();
  try {
    for (const run of runs) { // in turn, so that neither slows the other
      if (runs[0].state === "stopped") run.state = "stopped";
      else await run.follow(key, () => stage.soon());
    }
    say(runs.map(told).join(" "));
  } catch (error) {
    failed(error, start);
    for (const run of runs) if (run.state === "waiting") run.state = "stopped";
  }
  paper.learn(runs[0].tokens);
  stage.finish();
  layout();
}

function told(run) {
  const { written, forwards, rate, seconds } = run.cost(run.steps.length);
  const head = run.state === "stopped" ? "Stopped" : "Done";
  const cost = `${forwards} forwards, ${rate.toFixed(1)} a forward, ${secs(seconds)} seconds`;
  return `${head}, ${run.label}: ${written} tokens in ${cost}.`;
}

function failed(error, again) {
  if (!(error instanceof Trouble)) throw error;
  notice(error.status === 401 && !key ? "" : error.message);
  if (error.status !== 401) return;
  $("keyring").hidden = false;
  $("key").focus();
  $("keyring").onsubmit = (event) => {
    event.preventDefault();
    key = $("key").value;
    $("keyring").hidden = true;
    notice("");
    again();
  };
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
$("stop").addEventListener("click", () => runs.forEach((run) => run.stop()));

// Link

function remember() {
  const values = Object.fromEntries([...NUMBERS, "cache"].map((name) => [name, $(name).value]));
  const rest = { model: server.id, text: paper.text, decoder: spec(), with: spec("with"), chat: chatting() ? "1" : "",
    tab: tab === "race" ? "race" : "" };
  history.replaceState(null, "", linked({ ...values, ...rest }));
}

function fill(given) {
  paper.text = given.text;
  for (const name of ["cache", "block", "steps"]) $(name).value = given[name];
  for (const name of ["temperature", "seed", "length"]) if (given[name]) $(name).value = given[name];
  $("chat").checked = given.chat === "1";
  if (given.decoder) choose("decoder", given.decoder);
  choose("with", given.with);
  summary();
  turn(given.tab === "race" ? "race" : "watch");
}

// What the address asks for, filled in and run.
function visit() {
  const given = opened(location.hash);
  if (!given || busy()) return;
  fill(given);
  start();
  if (!given.model || given.model === server.id) return;
  const differs = `This link was made with the model ${given.model}; this server runs ${server.id}.`;
  notice(`${differs} The text will not be the same.`, "warning");
}

addEventListener("hashchange", visit);
$("link").addEventListener("click", async () => {
  remember();
  const done = await clip(location.href);
  say(done ? "Link copied." : "Copy the link from the field.");
  $("link").textContent = done ? "Link copied" : "Copy link to this run";
  setTimeout(() => ($("link").textContent = "Copy link to this run"), SOON);
  Object.assign($("address"), { hidden: done, value: location.href });
  if (!done) $("address").select();
});

// Tabs, theme, server

function turn(name) {
  tab = name;
  for (const each of Object.keys(stages)) {
    $(`tab-${each}`).setAttribute("aria-selected", each === name);
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    $(each).hidden = each !== name;
  }
  edited();
}

for (const each of Object.keys(stages)) {
  $(`tab-${each}`).addEventListener("click", () => busy() || turn(each));
  $(`tab-${each}`).addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key) || busy()) return;
    turn(each === "watch" ? "race" : "watch");
    $(`tab-${tab}`).focus();
  });
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  $("theme").textContent = dark() ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", dark() ? "Light colours" : "Dark colours");
}

$("theme").addEventListener("click", () => {
  theme(dark() ? "light" : "dark");
  localStorage.setItem("theme", document.documentElement.dataset.theme);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
theme(localStorage.getItem("theme"));

async function meet() {
  try {
    server = (await (await call("/v1/models", { key })).json()).data[0];
  } catch (error) {
    failed(error, meet);
    if (error.status !== 401) setTimeout(meet, SOON);
    return;
  }
  notice("");
  const { parameters, attention, device, dtype, decoders, caches, defaults, chat } = server.unveil;
  const size = parameters < 1e9 ? `${(parameters / 1e6).toPrecision(2)} M` : `${(parameters / 1e9).toPrecision(2)} B`;
  $("model").textContent = `${server.id} · ${size} parameters · ${attention} attention · ${device}, ${dtype}`;
  offer($("decoder"), decoders);
  offer($("with"), decoders, "nothing");
  offer($("cache"), caches, "the model's own");
  choose("decoder", defaults.decoder);
  if (defaults.cache) $("cache").value = taken(defaults.cache)[0];
  for (const name of ["block", "steps"]) $(name).value = defaults[name] ?? "";
  $("message").hidden = !chat;
  $("blank").disabled = attention === "block";
  if (attention === "block") $("how").textContent = "This model cannot see what follows a blank: it continues a text.";
  const examples = (chat ? PROSE : CODE).filter(([, text]) => attention !== "block" || !blanks(text).length);
  $("examples").replaceChildren(...examples.map(([name, text]) => {
    const button = element("button", { type: "button", className: "small", textContent: name });
    button.addEventListener("click", () => {
      paper.text = text;
    });
    return button;
  }));
  if (!paper.text) paper.text = examples[0][1]; // a reload keeps what stood there
  summary();
  paper.draw();
  visit();
}

meet();
