"use strict";
/* The charts: a panel for each figure, drawn by uPlot over the steps or tokens of all runs that are shown. */

const PANELS = [
  { title: "chart_loss", line: "loss", points: "validation_loss", isLoss: true },
  { title: "chart_bits", points: "validation_bits_per_byte" },
  { title: "chart_objective", line: "objective", isLoss: true },
  { title: "chart_divergence", line: "divergence" },
  { title: "chart_accuracy", line: "accuracy", points: "validation_accuracy" },
  { title: "chart_rate", line: "learning_rate", raw: true },
  { title: "chart_gradient", line: "grad_norm", logarithmic: true },
  { title: "chart_speed", line: "tokens_per_second" },
  { title: "chart_seconds", line: "step_seconds" },
  { title: "chart_mfu", line: "mfu" },
  { title: "chart_host", line: "host_bytes", raw: true, bytes: true },
  { title: "chart_device", line: "hbm_bytes", raw: true, bytes: true },
  { title: "chart_balance", line: "balance_loss" },
  { title: "chart_dropped", line: "dropped_share" },
  { title: "chart_pruned", line: "kept_channels", points: "kept_heads", raw: true, pointsWord: "heads" },
];
const SERIES_COLOURS = 10;
const TASK = "validation_task_";

/* The panels of what runs may have; each task of training.eval_tasks has one of its own. */
function panelsOf(runs) {
  const tasks = new Set(runs.flatMap((run) => Object.keys(run.figures).filter((name) => name.startsWith(TASK))));
  return [...PANELS, ...[...tasks].map((name) => ({ title: name, task: name.slice(TASK.length), points: name }))];
}

/* A number in a few characters: 12.3k, 0.00012, 1.5 GB. */
function shortNumber(value, bytes) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  if (bytes) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let unit = 0;
    for (; Math.abs(value) >= 1000 && unit < units.length - 1; unit++) value /= 1000;
    return `${+value.toPrecision(3)} ${units[unit]}`;
  }
  const size = Math.abs(value);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(4)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  return `${+value.toPrecision(4)}`;
}

/* The mean of the `window` values around each, as `stellarbyte plot` draws it. */
function smoothed(values, window) {
  if (window <= 1) return values;
  const sums = new Float64Array(values.length + 1);
  for (let i = 0; i < values.length; i++) sums[i + 1] = sums[i] + values[i];
  const before = Math.floor((window - 1) / 2), after = Math.floor(window / 2) + 1;
  return values.map((_, i) => {
    const start = Math.max(0, i - before), stop = Math.min(values.length, i + after);
    return (sums[stop] - sums[start]) / (stop - start);
  });
}

class Charts {
  constructor(element, words) {
    this.element = element;
    this.words = words;
    this.drawn = new Map();
    this.settings = { axis: "steps", smoothing: 20, logLoss: false };
    this.resizer = new ResizeObserver((entries) => {
      for (const entry of entries) {
        const drawn = [...this.drawn.values()].find((each) => each.box === entry.target);
        const width = Math.floor(entry.contentRect.width);
        if (drawn && width > 0 && width !== drawn.plot.width) drawn.plot.setSize({ width, height: drawn.plot.height });
      }
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  /* runs: [{name, colour, figures: name -> {steps, tokens, values}}] */
  draw(runs) {
    this.runs = runs;
    const present = this.panels = panelsOf(runs).filter((panel) => runs.some((run) => run.figures[panel.line] || run.figures[panel.points]));
    for (const [title, drawn] of this.drawn) if (!present.some((panel) => panel.title === title)) this.remove(title, drawn);
    present.forEach((panel) => this.drawPanel(panel, runs));
    return present.length;
  }

  rebuild() {
    for (const [title, drawn] of this.drawn) this.remove(title, drawn);
    if (this.runs) this.draw(this.runs);
  }

  remove(title, drawn) {
    this.resizer.unobserve(drawn.box);
    drawn.plot.destroy();
    drawn.figure.remove();
    this.drawn.delete(title);
  }

  drawPanel(panel, runs) {
    const tables = [], series = [{}], style = getComputedStyle(document.documentElement);
    for (const run of runs) {
      const colour = style.getPropertyValue(`--series-${run.colour % SERIES_COLOURS}`).trim();
      const line = run.figures[panel.line], points = run.figures[panel.points];
      if (line) {
        const x = line[this.settings.axis], window = panel.raw ? 1 : this.window(line.values.length);
        if (window > 1) {
          tables.push([x, line.values]);
          series.push({ label: "", stroke: colour, alpha: 0.25, width: 1, points: { show: false }, spanGaps: true });
        }
        tables.push([x, smoothed(line.values, window)]);
        series.push({ label: run.name, stroke: colour, width: 2, points: { show: x.length < 2 }, spanGaps: true });
      }
      if (points) {
        tables.push([points[this.settings.axis], points.values]);
        const what = line ? this.words[panel.pointsWord || "validation"] : "";
        series.push({
          label: `${run.name} ${what}`.trim(), stroke: colour, width: 1.5, dash: [5, 4], spanGaps: true,
          points: { show: true, size: 6, fill: colour },
        });
      }
    }
    const data = uPlot.join(tables.map(ascending));
    const key = JSON.stringify([series.map((each) => [each.label, each.stroke, each.dash, each.alpha]), this.logarithmic(panel)]);
    const drawn = this.drawn.get(panel.title);
    if (drawn && drawn.key === key) {
      const zoomed = drawn.zoomed && drawn.plot.scales.x;
      drawn.plot.setData(data, !zoomed);
      if (zoomed) drawn.plot.redraw();
      return;
    }
    if (drawn) this.remove(panel.title, drawn);
    this.create(panel, series, data, key, style);
  }

  create(panel, series, data, key, style) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const box = document.createElement("div"), value = document.createElement("small");
    caption.append(this.titleOf(panel), value);
    figure.append(caption, box);
    figure.id = panel.title;
    const after = this.panels.slice(this.panels.indexOf(panel) + 1).map((each) => this.drawn.get(each.title)).find(Boolean);
    this.element.insertBefore(figure, after ? after.figure : null);
    const ink = style.getPropertyValue("--muted").trim(), line = style.getPropertyValue("--line").trim();
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui, sans-serif" };
    const drawn = { figure, box, key, zoomed: false };
    drawn.plot = new uPlot({
      width: Math.max(200, Math.floor(box.clientWidth || figure.clientWidth || 320)),
      height: 230,
      series,
      legend: { show: false },
      cursor: { sync: { key: "all" }, drag: { x: true, y: false }, points: { size: 7 } },
      scales: { x: { time: false }, y: this.logarithmic(panel) ? { distr: 3 } : {} },
      axes: [
        { ...axis, values: (_, splits) => splits.map((each) => shortNumber(each)), size: 32 },
        { ...axis, values: (_, splits) => splits.map((each) => shortNumber(each, panel.bytes)), size: panel.bytes ? 68 : 56 },
      ],
      hooks: {
        setCursor: [(plot) => { value.textContent = this.atCursor(plot, panel); }],
        setSelect: [(plot) => { drawn.zoomed = plot.select.width > 0; }],
      },
    }, data, box);
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", this.titleOf(panel));
    box.addEventListener("dblclick", () => this.drawn.forEach((each) => { each.zoomed = false; each.plot.setData(each.plot.data, true); }));
    this.resizer.observe(box);
    this.drawn.set(panel.title, drawn);
  }

  /* What the runs have where the cursor is. */
  atCursor(plot, panel) {
    const place = plot.cursor.idx;
    if (place === null || place === undefined || plot.cursor.left < 0) return "";
    const parts = [`${this.words[this.settings.axis === "steps" ? "step" : "tokens"]} ${shortNumber(plot.data[0][place])}`];
    plot.series.forEach((series, number) => {
      if (!number || !series.label) return;
      const found = nearest(plot.data[number], place);
      const label = this.runs.length > 1 ? series.label : series.label.slice(this.runs[0].name.length).trim();
      if (found !== null) parts.push(`${label} ${shortNumber(found, panel.bytes)}`.trim());
    });
    return parts.join(" · ");
  }

  titleOf(panel) { return panel.task ? this.words.chart_task.replace("{task}", () => panel.task) : this.words[panel.title]; }

  logarithmic(panel) { return Boolean(panel.logarithmic || (panel.isLoss && this.settings.logLoss)); }

  /* 0 draws the steps as they are, 20 means over a fiftieth of the run as `stellarbyte plot` does, 100 over half of it. */
  window(count) { return Math.max(1, Math.round(count * (this.settings.smoothing / 100) ** 2 / 2)); }
}

/* uPlot joins by ascending x; the tokens of a run whose records are lost may stand still. */
function ascending([x, y]) {
  for (let i = 1; i < x.length; i++) {
    if (x[i] <= x[i - 1]) {
      const last = new Map(x.map((each, place) => [each, y[place]]));
      const sorted = [...last.keys()].sort((a, b) => a - b);
      return [sorted, sorted.map((each) => last.get(each))];
    }
  }
  return [x, y];
}

/* The value at a place, or the last one before it: runs and validations have other steps. */
function nearest(values, place) {
  for (let i = place; i >= 0 && i > place - 200; i--) if (values[i] !== null && values[i] !== undefined) return values[i];
  return null;
}
