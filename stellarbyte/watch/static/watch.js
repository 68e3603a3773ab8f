"use strict";
/* Asks the server for the runs every two seconds, and shows what is new. */

const words = JSON.parse(document.getElementById("words").textContent);
const lang = document.documentElement.lang;
const byId = (id) => document.getElementById(id);
const charts = new Charts(byId("charts"), words);

/* number -> {generation, count, figures}: what this page has of a run. */
const figures = new Map();
const hidden = new Set();
let runs = [], selected = null, details = null;
/* Which runs the charts show, and whether they lack figures that have come. */
let drawn = "", hasNews = false;

const POLL_MILLISECONDS = 2000;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const filled = (word, values) => words[word].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const whole = (value) => (value === null || value === undefined ? "" : Math.round(value).toLocaleString(lang));
const figure = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const format = (value, unit) => new Intl.NumberFormat(lang, { style: "unit", unit, unitDisplay: "short", maximumFractionDigits: 0 }).format(value);
  if (seconds < 1) return new Intl.NumberFormat(lang, { style: "unit", unit: "millisecond", maximumFractionDigits: 0 }).format(seconds * 1000);
  if (seconds < 90) return format(seconds, "second");
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return format(minutes, "minute");
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${format(hours, "hour")} ${format(minutes % 60, "minute")}`;
  return `${format(Math.floor(hours / 24), "day")} ${format(hours % 24, "hour")}`;
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

/* Adds what is new of a run's figures. */
function take(number, news) {
  const have = figures.get(number);
  if (news.whole || !have) {
    figures.set(number, { generation: news.generation, count: news.count, figures: news.figures });
    return;
  }
  for (const [name, added] of Object.entries(news.figures)) {
    const there = have.figures[name];
    if (!there) have.figures[name] = added;
    else for (const each of ["steps", "tokens", "values"]) there[each] = there[each].concat(added[each]);
  }
  have.count = news.count;
}

/* One after the other: an answer that is late must not replace a newer one. */
let asking = Promise.resolve();
function poll() {
  asking = asking.catch(() => {}).then(pollOnce);
  return asking;
}

async function pollOnce() {
  const answer = await ask("runs.json");
  runs = answer.runs;
  if (!runs.some((run) => run.number === selected)) selected = runs.length ? liveliest(runs).number : null;
  const shown = runs.filter((run) => !hidden.has(run.number));
  for (const run of shown) {
    const have = figures.get(run.number) || { generation: -1, count: -1 };
    if (have.generation !== run.generation || have.count !== run.count) {
      hasNews = true;
      take(run.number, await ask(`figures.json?run=${run.number}&generation=${have.generation}&count=${have.count}`));
    }
  }
  const run = runs.find((each) => each.number === selected);
  if (run) {
    details = await ask(`details.json?run=${run.number}`);
  }
  show(run);
}

const liveliest = (all) => all.find((run) => ["running", "starting", "stuck"].includes(run.state)) || all[0];

function show(run) {
  const title = runs.length > 1 ? filled("several", { count: runs.length }) : run ? filled("title", { name: run.name }) : "StellarByte";
  byId("title").textContent = title;
  document.title = run && run.max_steps ? `${Math.floor((100 * run.step) / run.max_steps)}% ${run.name}` : run ? run.name : "StellarByte";
  showRuns();
  if (run) showRun(run);
  drawCharts();
}

function drawCharts() {
  const shown = runs.filter((run) => !hidden.has(run.number) && figures.has(run.number));
  const key = JSON.stringify(shown.map((run) => [run.number, run.name, runs.indexOf(run)]));
  if (key === drawn && !hasNews) return;
  [drawn, hasNews] = [key, false];
  const count = charts.draw(shown.map((run) => ({ name: run.name, colour: runs.indexOf(run), figures: figures.get(run.number).figures })));
  byId("no-figures").hidden = count > 0;
  byId("hint").hidden = count === 0;
}

function showRun(run) {
  const condition = byId("condition");
  condition.replaceChildren(element("span", words[run.state], `state ${run.state}`));
  if (runs.length > 1) condition.append(element("strong", run.name));
  const silent = run.state === "stuck" ? filled("silent", { time: duration(run.silent_seconds) }) : "";
  const why = run.words || (run.state === "failed" ? words.killed : silent);
  for (const text of [why, run.problem]) if (text) condition.append(element("span", text, "why"));

  const memory = run.hbm_bytes !== null
    ? [run.hbm_bytes, run.hbm_limit_bytes === null ? "" : filled("of_device", { used: shortNumber(run.hbm_bytes, true), limit: shortNumber(run.hbm_limit_bytes, true) })]
    : [run.host_bytes, words.of_host];
  const best = run.best_validation;
  const tiles = [
    [words.step, run.count ? whole(run.step) : "–", run.max_steps ? filled("of_steps", { steps: whole(run.max_steps) }) : ""],
    [words.loss, figure(run.loss, 4), run.learning_rate === null ? "" : `${words.rate} ${shortNumber(run.learning_rate)}`],
    [words.validation_loss, figure(run.validation_loss, 4), best ? filled("best", { loss: best.loss.toFixed(4), step: whole(best.step) }) : ""],
    [words.speed, run.tokens_per_second === null ? "–" : whole(run.tokens_per_second), run.seconds_per_step === null ? "" : filled("step_time", { seconds: duration(run.seconds_per_step) })],
    [words.left, duration(run.seconds_left), run.seconds_left === null ? "" : filled("until", { time: clock(run.seconds_left) })],
    [words.tokens, run.tokens ? shortNumber(run.tokens) : "–", ""],
    ...(memory[0] === null ? [] : [[words.memory, shortNumber(memory[0], true), memory[1]]]),
  ];
  byId("tiles").replaceChildren(...tiles.map(([name, value, note]) => {
    const tile = element("div", null, "tile"), shown = element("dd", value);
    if (note) shown.append(element("small", note));
    tile.append(element("dt", name), shown);
    return tile;
  }));
  const share = run.max_steps ? Math.min(1, run.step / run.max_steps) : null;
  byId("track").hidden = share === null;
  if (share !== null) {
    byId("bar").style.width = `${100 * share}%`;
    byId("track").setAttribute("aria-valuenow", Math.round(100 * share));
  }
  showDetails(run);
}

function clock(seconds) {
  const then = new Date(Date.now() + 1000 * seconds);
  const far = seconds > 18 * 3600;
  return new Intl.DateTimeFormat(lang, far ? { dateStyle: "short", timeStyle: "short" } : { timeStyle: "short" }).format(then);
}

function showRuns() {
  byId("runs-section").hidden = runs.length < 2;
  if (runs.length < 2) return;
  const names = ["run", "state", "step", "loss", "validation_loss", "speed", "left"];
  const rows = runs.map((run, place) => {
    const box = element("input"), label = element("label"), name = element("button", run.name, "name");
    Object.assign(box, { type: "checkbox", checked: !hidden.has(run.number), title: words.curves });
    box.addEventListener("change", () => { hidden[box.checked ? "delete" : "add"](run.number); poll().catch(lost); });
    name.type = "button";
    name.addEventListener("click", () => { selected = run.number; poll().catch(lost); });
    name.setAttribute("aria-current", String(run.number === selected));
    const swatch = element("span", null, "swatch");
    swatch.style.color = `var(--series-${place % SERIES_COLOURS})`;
    label.append(box, swatch, name);
    const step = run.max_steps ? `${whole(run.step)} / ${whole(run.max_steps)}` : whole(run.step);
    return [label, element("span", words[run.state], `state ${run.state}`), step, figure(run.loss, 4), figure(run.validation_loss, 4),
      whole(run.tokens_per_second), run.seconds_left === null ? "" : duration(run.seconds_left)];
  });
  fill(byId("runs"), names, rows);
}

/* What keeps a checkpoint, in the page's language; `stellarbyte checkpoints` says it in English. */
const KEPT = [
  [/^newest (?<count>\d+)$/, "kept_newest"],
  [/^best (?<count>\d+) by (?<figure>\S+)$/, "kept_best"],
  [/^every (?<count>\d+) steps$/, "kept_every"],
  [/^a rollback goes back to it$/, "kept_rollback"],
  [/^another run needs it$/, "kept_needed"],
];
function kept(reason) {
  const [found, word] = KEPT.map(([pattern, word]) => [reason.match(pattern), word]).find(([found]) => found) || [];
  return found ? filled(word, found.groups || {}) : reason;
}

function showDetails(run) {
  if (!details) return;
  const best = Math.min(...details.checkpoints.map((each) => each.validation_loss).filter((loss) => loss !== null));
  const rows = details.checkpoints.slice().reverse().map((each) => [
    whole(each.step),
    each.saved_at === null ? "" : new Intl.DateTimeFormat(lang, { dateStyle: "short", timeStyle: "short" }).format(new Date(1000 * each.saved_at)),
    shortNumber(each.bytes, true),
    each.validation_loss === null ? "" : element("span", each.validation_loss.toFixed(4), each.validation_loss === best ? "best" : ""),
    each.kept_by === null ? "" : each.kept_by.map(kept).join(", ") || words.next_deleted,
  ]);
  if (rows.length) fill(byId("checkpoints"), ["step", "saved", "size", "validation_loss", "kept"], rows);
  else byId("checkpoints").replaceChildren(element("p", words.no_checkpoints, "note"));
  const report = byId("report");
  report.hidden = run.newest_checkpoint === null;
  const link = element("a", words.report);
  link.href = `report?run=${run.number}`;
  report.replaceChildren(link);

  showSamples(details.samples);

  const log = byId("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const text = details.log.join("\n") || words.no_log;
  if (log.textContent !== text) {
    log.textContent = text;
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}

const SHOWN_STEPS = 5;

/* For each prompt the newest texts, below each other, so that they can be compared. */
function showSamples(samples) {
  byId("samples-section").hidden = samples.prompts.length === 0;
  const rows = samples.rows.slice(0, SHOWN_STEPS);
  if (!rows.length) {
    byId("samples").replaceChildren(element("p", words.sampling, "note"));
    return;
  }
  byId("samples").replaceChildren(...samples.prompts.map((prompt, place) => {
    const box = element("figure"), list = element("dl");
    for (const row of rows) {
      const text = element("dd");
      if (row.problem) text.append(element("span", row.problem, "why"));
      else text.append(element("span", prompt, "why"), row.texts[place]);
      list.append(element("dt", filled("at_step", { step: whole(row.step) })), text);
    }
    box.append(list);
    return box;
  }));
}

/* A table in place of the one before; a cell is text or an element. What had the focus in it has it again. */
function fill(box, names, rows) {
  const focused = [...box.querySelectorAll("input, button")].indexOf(document.activeElement);
  const table = element("table"), head = element("thead"), body = element("tbody"), line = element("tr");
  line.append(...names.map((name) => element("th", words[name])));
  head.append(line);
  body.append(...rows.map((row) => {
    const made = element("tr");
    made.append(...row.map((cell, place) => {
      const td = element(place ? "td" : "th");
      td.append(cell);
      return td;
    }));
    return made;
  }));
  table.append(head, body);
  box.replaceChildren(table);
  if (focused >= 0) box.querySelectorAll("input, button")[focused]?.focus();
}

function lost() { byId("lost").hidden = false; }

async function follow() {
  if (!document.hidden) {
    try {
      await poll();
      byId("lost").hidden = true;
    } catch (error) {
      console.warn(error);
      lost();
    }
  }
  setTimeout(follow, POLL_MILLISECONDS);
}

byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("input", () => {
  charts.settings = { axis: byId("axis").value, smoothing: Number(byId("smoothing").value), logLoss: byId("log-loss").checked };
  charts.rebuild();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll().catch(lost); });
follow();
