"use strict";
// The sweep table: sort by a click on a header, filter by words, show all columns or the usual ones.

const USUAL = ["engine", "valid", "point", "completed", "failed", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "e2el_ms_p50",
  "output_tok_per_s", "tok_per_s_per_user", "goodput_per_s", "found_concurrency", "found_request_rate", "slo_kept", "price_per_m_output_tok", "invalid_reason", "notes"];
const LONG = ["invalid_reason", "notes"];
const tableState = { sort: null, up: true, words: "", validity: "all", all: false };

function tableColumns() {
  const present = new Set(DATA.rows.flatMap((row) => Object.keys(row)).filter((name) => !name.startsWith("_")));
  const ordered = [...DATA.swept, ...(tableState.all ? present : USUAL)].filter((name) => present.has(name));
  return [...new Set(ordered)];
}

/** Rows that hold every word of the filter, sorted. Unknown values come last, whichever way it is sorted. */
function tableRows(columns) {
  const words = tableState.words.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = DATA.rows.filter((row) => {
    if (tableState.validity !== "all" && String(row.valid) !== tableState.validity) return false;
    const text = Object.entries(row).filter(([name]) => !name.startsWith("_"))
      .map(([name, value]) => `${name}=${shown(value)} ${said(shown(value))}`).join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const key = tableState.sort;
  if (key === null || !columns.includes(key)) return rows;
  const sign = tableState.up ? 1 : -1;
  return rows.sort((one, two) => {
    const [a, b] = [one[key], two[key]];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  });
}

/** Whether no valid row of the same work that keeps up and kind has a better value; a row without a rival is not the best. */
function isBest(row, name) {
  const low = DATA.starred[name] === "low";
  const counts = (one) => one.valid && !one.saturated && typeof one[name] === "number" && (!low || one[name] > 0);  // a latency of 0 is none
  if (!(name in DATA.starred) || !counts(row)) return false;
  const rivals = DATA.rows.filter((other) => other !== row && counts(other)
    && other._work === row._work && other._simulated === row._simulated);
  return rivals.length > 0 && rivals.every((other) => (low ? row[name] <= other[name] : row[name] >= other[name]));
}

/** A header: the section of a key stands small above its name. */
function headerOf(name) {
  const [section, ...rest] = name.split(".");
  return rest.length ? [h("span", { class: "soft section" }, `${section}.`), rest.join(".")] : [columnName(name)];
}

function drawTable(place) {
  const columns = tableColumns();
  const rows = tableRows(columns);
  const numeric = (name) => DATA.rows.some((row) => typeof row[name] === "number");
  const sortBy = (name) => () => {
    tableState.up = tableState.sort === name ? !tableState.up : true;
    tableState.sort = name;
    drawTable(place);
  };
  const arrow = (name) => (tableState.sort === name ? (tableState.up ? " ▲" : " ▼") : "");
  const order = (name) => (tableState.sort === name ? (tableState.up ? "ascending" : "descending") : "none");
  const cell = (row, name) => {
    const classes = [numeric(name) ? "number" : "", LONG.includes(name) ? "reason" : "",
      isBest(row, name) ? "best" : ""].filter(Boolean).join(" ");
    const mark = name === "valid" && row.valid && row.notes ? "*" : "";
    const text = typeof row[name] === "boolean" ? t(`value.${row[name]}`) + mark : said(shown(row[name]));
    // A long reason would make its row very high: here its beginning, the whole under "What failed".
    if (LONG.includes(name)) return h("td", { class: classes, title: text }, h("div", {}, text));
    return h("td", { class: classes || null }, text);
  };
  place.replaceChildren(
    h("p", { class: "soft", id: "row-count" }, t("table.count", { shown: rows.length, all: DATA.rows.length })),
    h("div", { class: "scroll", tabindex: "0" }, h("table", { class: "rows", id: "rows" },
      h("thead", {}, h("tr", {}, ...columns.map((name) => h("th",
        { class: numeric(name) ? "number" : null, "aria-sort": order(name), title: name },
        h("button", { type: "button", "data-column": name, onclick: sortBy(name) }, ...headerOf(name), arrow(name)))))),
      h("tbody", {}, ...rows.map((row) => h("tr", { class: row.valid ? null : "invalid" },
        ...columns.map((name) => cell(row, name))))))));
}

function tableSection(place) {
  const body = h("div");
  place.append(
    h("div", { class: "controls" },
      h("input", { type: "search", id: "filter", placeholder: t("table.filter"), "aria-label": t("table.filter"),
        value: tableState.words, oninput: (event) => { tableState.words = event.target.value; drawTable(body); } }),
      choice("validity", t("table.show"), ["all", "true", "false"].map((key) => [key, t(`table.show.${key}`)]),
        tableState.validity, (value) => { tableState.validity = value; drawTable(body); }),
      h("label", {}, h("input", { type: "checkbox", id: "all-columns", checked: tableState.all,
        onchange: (event) => { tableState.all = event.target.checked; drawTable(body); } }), ` ${t("table.all")}`)),
    body, h("p", { class: "soft" }, t("table.note")));
  drawTable(body);
}
