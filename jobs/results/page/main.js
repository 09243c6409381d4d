"use strict";
// The sections of the page, in order, and the switch of the language. Everything is rebuilt on a switch.

function summarySection(place) {
  const verdict = DATA.verdict;
  const named = ({ column, objective, ...values }) => ({ ...values, column: column && columnName(column), objective: objective && columnName(objective) });
  const say = (one) => h("p", {}, t(`verdict.${one.id}`, named(one.values)));
  place.append(h("div", { class: `verdict ${verdict.believe}`, id: "verdict" },
    ...verdict.sentences.map(say), h("p", {}, h("strong", {}, t(`believe.${verdict.believe}`)))));
  const share = (one) => `${(one * 100).toFixed(0)} %`;
  if (DATA.speculation.length) place.append(grid(["length", "drafted", "acceptance", "position", "step", "gain"].map((one) => t(`speculation.${one}`)),
    DATA.speculation.map((one) => [one.length, one.drafted, one.acceptance === null ? "" : share(one.acceptance), one.by_position.map(share).join(" "),
      one.tokens_per_step === null ? "" : one.tokens_per_step.toFixed(2), `${one.percent.toFixed(1)} ± ${one.error.toFixed(1)}`])));
}

function planSection(place) {
  const plan = DATA.plan;
  place.append(
    h("p", {}, t("plan.points", plan)),
    h("p", {}, t("plan.hours", { predicted: plan.predicted_node_hours, real: DATA.time.node_hours })),
    grid([t("plan.service"), t("plan.count"), t("plan.valid"), t("plan.attempts"), t("plan.predicted"), t("plan.seconds")],
      plan.services.map((one) => [one.service, one.points, one.valid, one.attempts, one.predicted_s, one.seconds])));
  const told = DATA.rows.filter((row) => row.valid && row.forecast_output_tok_per_s);
  const figures = ["output_tok_per_s", "ttft_ms_mean", "tpot_ms_mean"];
  const beside = (real, said) => (real && said ? `${shown(real)} / ${shown(said)} (${((real / said - 1) * 100).toFixed(0)} %)` : "");
  if (told.length) {
    place.append(h("h3", {}, t("plan.forecast")), grid([t("search.setting"), ...figures.map(columnName), t("plan.unexpected")],
      told.map((row) => [[row._setting, shown(row._load)].filter(Boolean).join(" "), ...figures.map((name) => beside(row[name], row[`forecast_${name}`])), row.unexpected && said(row.unexpected)])));
  }
  if (DATA.skipped.length) {
    place.append(h("p", {}, t("plan.skipped")), h("ul", {}, ...DATA.skipped.map((one) => h("li", {}, `${one.what}: ${said(one.reason)}`))));
  }
}

function failuresSection(place) {
  if (!DATA.failures.length) place.append(h("p", {}, t("failures.none")));
  for (const one of DATA.failures) {
    const rows = one.points.map((point) => DATA.rows.find((row) => row.point === point));
    place.append(h("h3", {}, t("failures.points", { count: rows.length })), h("p", {}, said(one.reason)),
      h("ul", {}, ...rows.map((row) => h("li", {}, `${row.point}: ${DATA.swept.map((key) => `${key}=${shown(row[key])}`).join(" ")}`))));
    if (one.diagnosis) place.append(h("details", {}, h("summary", {}, t("failures.diagnosis")), h("pre", {}, said(one.diagnosis))));
  }
  if (DATA.notices.length) {
    place.append(h("h3", {}, t("failures.notices")),
      h("ul", {}, ...DATA.notices.map((one) => h("li", {}, `${one.service}: ${said(one.text)}`))));
  }
}

function memorySection(place) {
  const found = DATA.memory;
  if (!found.length) { place.append(h("p", {}, t("memory.none"))); return; }
  if (!found.some((one) => one.predicted !== null)) place.append(h("p", {}, t("memory.unpredicted")));
  place.append(grid([t("plan.service"), t("memory.predicted"), t("memory.measured"), t("memory.ratio")], found.map((one) => [
    one.service, one.predicted, one.measured,
    one.predicted && one.measured ? `${((one.measured / one.predicted - 1) * 100).toFixed(1)} %` : ""])));
}

function provenanceSection(place) {
  const known = DATA.provenance;
  const tool = known.tool;
  const missing = t("provenance.missing");
  place.append(grid([t("provenance.what"), t("provenance.value")], [
    [t("provenance.command"), (tool.command || []).join(" ") || missing],
    [t("provenance.commit"), tool.commit || missing],
    [t("provenance.versions"), [tool.python && `Python ${tool.python}`, ...Object.entries(tool.packages || {}).map(([name, version]) => `${name} ${version}`)]
      .filter(Boolean).join(", ") || missing],
    [t("provenance.engine"), known.releases.join(", ")],
    [t("provenance.image"), known.image || t("provenance.noimage")],
    ...Object.entries(known.seen).map(([name, values]) => [name, values.join(", ")]),
    [t("provenance.nodes"), known.nodes.join(", ") || missing],
  ]));
  place.append(h("details", {}, h("summary", {}, t("provenance.config")), h("pre", {}, known.config)));
  for (const one of known.ranks) {
    const title = `${t("plan.service")} ${one.service}, ${t("plan.attempts")} ${one.attempt}, ${one.rank}: `
      + (one.differences.length ? t("provenance.different", { count: one.differences.length }) : t(one.effective ? "provenance.same" : "provenance.intended"));
    place.append(h("details", {}, h("summary", {}, title), h("pre", {}, [one.argv.join(" "),
      ...Object.entries(one.env).map(([name, value]) => `${name}=${value}`),
      ...one.differences.map((d) => `! ${d.key}: ${d.intended} → ${d.effective}`)].join("\n"))));
  }
}

const SECTIONS = { ...(DATA.search.goal ? { search: searchSection } : {}), summary: summarySection, plan: planSection, table: tableSection, frontier: frontierSection,
  lengths: lengthsSection, time: timeSection, balance: balanceSection, failures: failuresSection, memory: memorySection,
  provenance: provenanceSection };

function render() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.getElementById("language").textContent = t("switch");
  const [main, contents] = [document.getElementById("sections"), document.getElementById("contents")];
  main.replaceChildren();
  contents.replaceChildren();
  for (const [name, build] of Object.entries(SECTIONS)) {
    const section = h("section", { id: name }, h("h2", {}, t(`section.${name}`)));
    main.append(section);
    contents.append(h("a", { href: `#${name}` }, t(`section.${name}`)));
    build(section);
  }
  return drawPlots();
}

document.getElementById("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  render();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
render();
