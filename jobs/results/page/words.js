"use strict";
// Words in the reader's language, and small helpers to make elements.

const DATA = JSON.parse(document.getElementById("data").textContent);
const WORDS = JSON.parse(document.getElementById("words").textContent);
let language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";

/** Return a number for people: three or four significant digits; anything else as text; nothing for unknown. */
function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number" && !Number.isInteger(value)) {
    return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
  }
  return String(value);
}

/** Return a text by its id, with {names} filled in. An id without a text is shown as it is. */
function t(id, values = {}) {
  const text = WORDS[id] ? WORDS[id][language] : id;
  const number = (v) => (v === null || v === undefined ? "?" :
    typeof v === "number" && !Number.isInteger(v) && Math.abs(v) < 1000 ? String(Number(v.toPrecision(3))) : shown(v));
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? said(number(values[name])) : whole));
}

/** Return a text of the data (a reason, a note) in the reader's language, where it is known in it. */
function said(text) {
  return language === "zh" && Object.hasOwn(DATA.zh, text) ? DATA.zh[text] : text;
}

/** Return the name of a column for people, in the reader's language where there is one. */
function columnName(name) {
  return WORDS[`column.${name}`] ? t(`column.${name}`) : name;
}

/** Make an element: h("p", {class: "soft"}, "text", child). Handlers are given as onclick, oninput, onchange. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Make a plain table from a list of headers and rows of cells; cells that are numbers stand right. */
function grid(headers, rows) {
  const cell = (value) => (typeof value === "number"
    ? h("td", { class: "number" }, shown(value)) : h("td", {}, value instanceof Node ? value : shown(value)));
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ...headers.map((text, i) => h("th", { class: rows.length && typeof rows[0][i] === "number" ? "number" : null }, text)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map(cell))))));
}

/** Make a select box: options are [value, text] pairs. */
function choice(id, label, options, value, onchange) {
  return h("label", {}, `${label} `, h("select", { id, onchange: (event) => onchange(event.target.value) },
    ...options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));
}
