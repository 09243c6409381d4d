"use strict";
// The plots. Each builder fills a section; drawPlots() draws what was asked for, in the colours of the page.

const COLOURS = ["#3b7dd8", "#d9772b", "#2f9e6b", "#b5529f", "#c0392b", "#7a6fd0", "#8a8f2a", "#1f9bb5", "#a0694b", "#6b7a8f"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
const LATENCIES = ["ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "tpot_ms_p99", "e2el_ms_p50", "e2el_ms_p99"];
const plotState = { latency: "ttft_ms_p50", length: DATA.lengths[0] || null,
  limits: { ...(Object.keys(DATA.slo).length ? DATA.slo : DATA.example) }, changed: false };
let waiting = [];

function layoutOf(x, y, more = {}) {
  const css = getComputedStyle(document.documentElement);
  const [ink, line] = [css.getPropertyValue("--ink").trim(), css.getPropertyValue("--line").trim()];
  const axis = (title) => ({ title: { text: title }, gridcolor: line, zerolinecolor: line, automargin: true, rangemode: "tozero" });
  return Object.assign({ paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12 },
    margin: { l: 50, r: 12, t: 12, b: 40 }, xaxis: axis(x), yaxis: axis(y), hovermode: "closest",
    legend: { orientation: "h", y: -0.25, yanchor: "top", traceorder: "normal", font: { size: 11 } }, showlegend: true }, more);
}

/** Plotly makes links, bold and colours of what looks like HTML: words are shown as they are, but for our own line ends. */
function asWords(value) {
  if (typeof value === "string") return value.replace(/&/g, "&amp;").replace(/<(?!br>)/g, "&lt;");
  if (Array.isArray(value)) return value.map(asWords);
  if (!value || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([name, child]) => [name, asWords(child)]));
}

/** Ask for a plot in `place`; it is drawn once the page stands, since Plotly needs the real width. */
function plot(place, id, traces, layout, wide = false) {
  const element = h("div", { class: wide ? "plot wide" : "plot", id });
  place.append(element);
  waiting.push(() => Plotly.newPlot(element, asWords(traces()), asWords(layout()), { displaylogo: false, displayModeBar: false, responsive: true }));
}

function drawPlots() {
  const asked = waiting;
  waiting = [];
  return Promise.all(asked.map((draw) => draw()));
}

const simulatedRow = (row) => row._simulated;
const settingOf = (row) => DATA.swept.map((key) => `${key}=${shown(row[key])}`).join("<br>") || row.point;

/** Rows for which no other row of the same work and kind is both faster and of more throughput. */
function frontier(rows, latency) {
  return rows.filter((row) => !rows.some((other) => other !== row && simulatedRow(other) === simulatedRow(row) && other._work === row._work
    && other[latency] <= row[latency] && other.output_tok_per_s >= row.output_tok_per_s
    && (other[latency] < row[latency] || other.output_tok_per_s > row.output_tok_per_s)));
}

function frontierSection(place) {
  const rows = DATA.rows.filter((row) => row.valid && typeof row.output_tok_per_s === "number");
  if (!rows.length) { place.append(h("p", {}, t("none.valid"))); return; }
  const present = LATENCIES.filter((name) => rows.some((row) => typeof row[name] === "number"));
  const body = h("div");
  const draw = () => {
    body.replaceChildren();
    const found = rows.filter((row) => row[plotState.latency] > 0);
    plot(body, "plot-frontier", () => {
      const names = [...new Set(found.map((row) => row._series))];
      const settings = [...new Set(found.map((row) => row._setting))];
      const works = [...new Set(found.map((row) => row._work))];
      const traces = names.map((name) => {
        const [one] = found.filter((row) => row._series === name);
        const symbol = SYMBOLS[works.indexOf(one._work) % SYMBOLS.length];
        const mine = found.filter((row) => row._series === name).sort((a, b) => a._load - b._load);
        return { name: name || t("plot.rows"), mode: "lines+markers+text", textposition: "top center",
          x: mine.map((row) => row[plotState.latency]), y: mine.map((row) => row.output_tok_per_s),
          text: names.length > 4 ? undefined : mine.map((row) => shown(row._load)), hovertext: mine.map(settingOf),
          line: { color: COLOURS[settings.indexOf(one._setting) % COLOURS.length], width: 1.5, dash: mine.some(simulatedRow) ? "dot" : "solid" },
          marker: { size: 8, symbol: mine.some(simulatedRow) ? `${symbol}-open` : symbol } };
      });
      const front = frontier(found, plotState.latency);
      traces.push({ name: t("plot.frontier"), mode: "markers", hoverinfo: "skip",
        x: front.map((row) => row[plotState.latency]), y: front.map((row) => row.output_tok_per_s),
        marker: { size: 15, symbol: "circle-open", color: COLOURS[4], line: { width: 2 } } });
      return traces;
    }, () => layoutOf(columnName(plotState.latency), columnName("output_tok_per_s")), true);
    drawPlots();
  };
  place.append(h("p", {}, t("frontier.note")), h("div", { class: "controls" },
    choice("latency", t("frontier.latency"), present.map((name) => [name, columnName(name)]), plotState.latency,
      (value) => { plotState.latency = value; draw(); })), body);
  waiting.push(draw);
}

function curveTraces(curves) {
  return curves.flatMap((one, index) => {
    const colour = COLOURS[index % COLOURS.length];
    const points = { name: one.series || t("plot.rows"), mode: "markers", x: one.x, y: one.y, legendgroup: one.series,
      marker: { color: colour, size: 8, symbol: one.series.includes("(simulator)") ? "circle-open" : "circle" } };
    if (!one.curve) return [{ ...points, mode: "lines+markers", line: { dash: "dot", width: 1, color: colour } }];
    const band = { x: [...one.curve.x, ...[...one.curve.x].reverse()], y: [...one.curve.high, ...[...one.curve.low].reverse()],
      fill: "toself", fillcolor: `${colour}26`, line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false,
      legendgroup: one.series };
    const line = { x: one.curve.x, y: one.curve.y, mode: "lines", line: { color: colour, width: 2 }, showlegend: false,
      hoverinfo: "skip", legendgroup: one.series };
    return [band, line, points];
  });
}

/** Whether the figures of a row are within all limits of the page; null: one that matters is unknown. */
function isWithin(row) {
  const limits = Object.entries(plotState.limits);
  if (row.saturated || limits.some(([name, limit]) => row._p99[name] > limit)) return false;
  return limits.every(([name]) => typeof row._p99[name] === "number") ? true : null;
}

/** The largest load of each series and length at which every limit is kept by a valid row; null: it cannot be told. */
function largestLoads(key) {
  if (!plotState.changed) return DATA.largest.filter((one) => one.key === key);
  const found = new Map();
  for (const row of DATA.rows) {
    const length = row._lengths[key];
    if (length === null || length === undefined || !row.valid) continue;
    const name = DATA.swept.filter((swept) => ![key, row._load_key].includes(swept))
      .map((swept) => `${swept.split(".").pop()}=${row[swept]}`).concat(simulatedRow(row) ? ["(simulator)"] : []).join(" ");
    const line = found.get(name) || new Map();
    const kept = isWithin(row);
    line.set(length, [...(line.get(length) || []), kept === null ? null : kept ? row._load : 0]);
    found.set(name, line);
  }
  return [...found].map(([series, line]) => {
    const x = [...line.keys()].sort((a, b) => a - b);
    const most = (loads) => Math.max(...loads) || (loads.includes(null) ? null : 0);
    return { series, x, y: x.map((length) => most(line.get(length))), curve: null };
  });
}

function lengthsSection(place) {
  if (!DATA.lengths.length) { place.append(h("p", {}, t("lengths.none"))); return; }
  const body = h("div");
  const draw = () => {
    body.replaceChildren();
    const key = plotState.length;
    const plots = h("div", { class: "plots" });
    const mine = DATA.curves.filter((one) => one.key === key);
    for (const column of ["ttft_ms_p50", "tpot_ms_p50", "output_tok_per_s"]) {
      const curves = mine.filter((one) => one.column === column);
      if (curves.length) {
        plot(plots, `plot-length-${column}`, () => curveTraces(curves), () => layoutOf(columnName(key), columnName(column)));
      }
    }
    const few = mine.length > 0 && mine.every((one) => !one.curve);
    const some = mine.some((one) => one.curve);
    body.append(h("p", {}, t(!mine.length ? "none.valid" : few ? "lengths.few" : "lengths.curve", { least: DATA.lengths_for_line })), plots);
    if (some && mine.some((one) => !one.curve)) body.append(h("p", { class: "soft" }, t("lengths.some")));
    body.append(h("h3", {}, t("objective.title")), h("p", {}, t(Object.keys(DATA.slo).length ? "objective.given" : "objective.example")));
    const limit = (name) => h("label", {}, `${columnName(name)} ≤ `, h("input", { type: "number", min: "1",
      id: `limit-${name.split("_")[0]}`, value: plotState.limits[name],
      onchange: (event) => { plotState.limits[name] = Number(event.target.value); plotState.changed = true; draw(); } }));
    const loads = largestLoads(key);
    body.append(h("div", { class: "controls" }, ...Object.keys(plotState.limits).map(limit)), h("p", { class: "soft" }, t("objective.gaps")));
    plot(body, "plot-objective", () => curveTraces(loads), () => layoutOf(columnName(key), t("objective.axis")));
    drawPlots();
  };
  if (DATA.lengths.length > 1) {
    place.append(h("div", { class: "controls" }, choice("length-key", t("lengths.key"),
      DATA.lengths.map((key) => [key, columnName(key)]), plotState.length, (value) => { plotState.length = value; draw(); })));
  }
  place.append(body);
  waiting.push(draw);
}

function timeSection(place) {
  const time = DATA.time;
  place.append(h("p", {}, t("time.useful", { share: time.useful_share === null ? null : time.useful_share * 100, hours: time.node_hours })));
  if (time.queue_s !== null) place.append(h("p", { class: "soft" }, t("time.queue", { seconds: time.queue_s })));
  if (time.node_hours > 0) {
    plot(place, "plot-time", () => time.phases.map((phase, index) => ({ type: "bar", orientation: "h", y: [""],
      x: [phase.node_hours], name: t(`phase.${phase.phase}`), marker: { color: COLOURS[index] } })),
    () => layoutOf(t("time.axis"), "", { barmode: "stack" }));
  }
  place.append(grid([t("time.phase"), t("time.seconds"), t("time.axis"), t("time.share")], time.phases.map((phase) => [
    t(`phase.${phase.phase}`), phase.seconds, phase.node_hours, phase.share === null ? "" : `${(phase.share * 100).toFixed(1)} %`])));
}

function balanceSection(place) {
  const found = DATA.balance;
  if (!found.length) { place.append(h("p", {}, t("balance.none"))); return; }
  const worst = Math.max(...found.map((one) => one.peak));
  place.append(h("p", {}, t(worst > 1.25 ? "balance.uneven" : "balance.even", { peak: worst })));
  const engines = [...new Set(found.flatMap((one) => Object.keys(one.shares)))].sort((a, b) => Number(a) - Number(b));
  plot(place, "plot-balance", () => engines.map((engine, index) => ({ type: "bar", name: t("balance.engine", { engine }),
    x: found.map((one) => one.point), y: found.map((one) => one.shares[engine] || 0),
    hovertext: found.map((one) => settingOf(DATA.rows.find((row) => row.point === one.point))),
    marker: { color: COLOURS[index % COLOURS.length] } })),
  () => layoutOf(t("balance.point"), t("balance.share"), { barmode: "stack", xaxis: { type: "category", automargin: true } }));
}
