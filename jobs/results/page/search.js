"use strict";
// What a search has found: the answer first, with the command that serves it; what is measured and what only forecast.

function copyButton(text) {
  const button = h("button", { type: "button", id: "copy", onclick: () => {
    const done = () => { button.textContent = t("search.copied"); };
    if (navigator.clipboard && window.isSecureContext) { navigator.clipboard.writeText(text).then(done); return; }
    const area = h("textarea", {}, text); // a page from a file has no clipboard of its own
    document.body.append(area);
    area.select();
    if (document.execCommand("copy")) done();
    area.remove();
  } }, t("search.copy"));
  return button;
}

function searchPlot(found, place) {
  const latency = found.goal === "ttft_ms_mean" ? "ttft_ms_mean" : "tpot_ms_mean";
  plot(place, "plot-search", () => [true, false].map((measured) => {
    const mine = found.settings.filter((one) => one.measured === measured);
    return { name: t(measured ? "search.measured" : "search.forecast"), mode: "markers", x: mine.map((one) => one[latency]),
      y: mine.map((one) => one.output_tok_per_s), hovertext: mine.map((one) => one.name),
      marker: { size: measured ? 10 : 8, color: COLOURS[measured ? 0 : 9], symbol: measured ? "circle" : "circle-open" } };
  }), () => layoutOf(columnName(latency), columnName("output_tok_per_s")), true);
}

function searchSection(place) {
  const found = DATA.search, best = found.answer;
  const answer = best ? [h("p", {}, h("strong", {}, best.name)), h("p", {}, t("search.value", { ...best, column: columnName(found.goal) })),
    best.tied ? h("p", {}, t("search.tied", best)) : null, h("pre", {}, best.serve), copyButton(best.serve)]
    : [h("p", {}, t("search.none"))];
  place.append(h("div", { class: `verdict ${best ? "care" : "no"}`, id: "answer" }, ...answer),
    h("p", {}, t("search.cost", found)));
  searchPlot(found, place);
  const columns = ["output_tok_per_s", "ttft_ms_mean", "tpot_ms_mean"];
  place.append(grid([t("search.setting"), ...columns.map(columnName), t("search.starts"), t("search.windows"), t("search.out")],
    found.settings.map((one) => [one.name, ...columns.map((name) => one[name]), one.starts, one.windows, said(one.out)])));
  const never = Object.entries(found.ruled_out);
  if (never.length) {
    place.append(h("h3", {}, t("search.never", { count: never.length })),
      h("ul", {}, ...never.map(([name, reason]) => h("li", {}, `${name}: ${said(reason)}`))));
  }
  const next = { hours: found.next.node_hours, settings: found.next.settings.join(", "), percent: found.next.gain * 100 };
  place.append(h("p", {}, t(found.next.settings.length ? "search.next" : "search.enough", next)));
}
