"use strict";
// Tables that can be looked things up in: headings sort, boxes below them filter, the address keeps
// both. Details are open while the page is printed.
const FEW = 16; // values of a column that a list shows
const NONE = "–";

const number = text => {
  const found = text.replaceAll("−", "-").match(/^[<>]?\s*(-?(?:[\d.]+(?:e[+-]?\d+)?|inf))/i);
  return found ? Number(found[1].replace("inf", "Infinity")) : NaN;
};
const order = (a, b) => {
  if (a === NONE || b === NONE) return (a === NONE) - (b === NONE) || 0;
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a.localeCompare(b);
  return x === y ? 0 : x - y;
};
// What a filter's text asks of a cell: a range of numbers, or words that occur in it.
const asks = text => {
  const wanted = text.trim().replaceAll("−", "-");
  const range = wanted.match(/^(-?[\d.]+)\.\.(-?[\d.]+)$/);
  if (range) return cell => number(cell) >= +range[1] && number(cell) <= +range[2];
  const bound = wanted.match(/^([<>]=?)\s*(-?[\d.]+)$/);
  if (bound) {
    const [, sign, limit] = bound;
    return cell => {
      const value = number(cell);
      if (sign.endsWith("=") && value === +limit) return true;
      return sign[0] === "<" ? value < +limit : value > +limit;
    };
  }
  if (/^-?[\d.]+$/.test(wanted)) return cell => number(cell) === +wanted;
  return cell => cell.toLowerCase().includes(text.trim().toLowerCase());
};

function lookup(table) {
  const box = table.parentElement, body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const names = heads.map(head => head.textContent);
  const rows = [...body.rows].map(row => ({ row, cells: [...row.cells].map(c => c.textContent) }));
  let heading = box.previousElementSibling;
  while (heading && !/^H\d$/.test(heading.tagName)) heading = heading.previousElementSibling;
  const anchor = heading ? heading.id : "";
  const count = document.createElement("p");
  const reset = document.createElement("button");
  const output = document.createElement("output");
  count.className = "shown";
  reset.textContent = "Show all";
  reset.type = "button";
  count.append(output, " ", reset);
  box.before(count);

  let sorted = "", falling = false;
  const filters = document.createElement("tr");
  filters.className = "filters";
  const controls = names.map((name, place) => {
    const values = [...new Set(rows.map(r => r.cells[place]))].sort(order);
    const few = values.length <= FEW && values.every(value => value.length < 24);
    const control = document.createElement(few ? "select" : "input");
    if (few) control.append(new Option("all", ""), ...values.map(v => new Option(v, v)));
    else control.type = "search";
    control.setAttribute("aria-label", `Filter by ${name}`);
    control.addEventListener("input", () => { show(); keep(); });
    const cell = document.createElement("th");
    cell.append(control);
    filters.append(cell);
    return control;
  });
  table.tHead.append(filters);
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = names[place];
    button.addEventListener("click", () => {
      falling = sorted === names[place] && !falling;
      sorted = names[place];
      sort();
      keep();
    });
    head.replaceChildren(button);
  });
  reset.addEventListener("click", () => {
    controls.forEach(control => { control.value = ""; });
    show();
    keep();
  });

  function show() {
    const tests = controls.map(control => {
      if (!control.value) return null;
      return control.tagName === "SELECT" ? cell => cell === control.value : asks(control.value);
    });
    let shown = 0;
    const used = names.map(() => false);
    for (const { row, cells } of rows) {
      row.hidden = !cells.every((cell, place) => !tests[place] || tests[place](cell));
      if (row.hidden) continue;
      shown += 1;
      cells.forEach((cell, place) => { used[place] ||= cell !== NONE; });
    }
    // A column of settings that none of the shown runs has would only take room.
    const empty = place => shown > 0 && !used[place] && !tests[place];
    for (const row of [...table.tHead.rows, ...rows.map(r => r.row)]) {
      if (!row.hidden) names.forEach((_, place) => { row.cells[place].hidden = empty(place); });
    }
    output.textContent = `${shown} of ${rows.length} rows`;
    reset.hidden = shown === rows.length;
  }

  function sort() {
    const place = names.indexOf(sorted);
    heads.forEach((head, k) => {
      if (k === place) head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    if (place < 0) return;
    const gone = r => r.cells[place] === NONE;
    const ordered = [...rows].sort((a, b) => {
      const by = order(a.cells[place], b.cells[place]);
      return falling && !gone(a) && !gone(b) ? -by : by;
    });
    body.append(...ordered.map(r => r.row));
  }

  function keep() {
    const state = new URLSearchParams();
    controls.forEach((control, k) => { if (control.value) state.set(names[k], control.value); });
    if (sorted) state.set("sort", (falling ? "-" : "") + sorted);
    history.replaceState(null, "", `#${anchor}${String(state) && "?"}${state}`);
  }

  function restore() {
    const [target, query] = location.hash.slice(1).split("?");
    if (decodeURIComponent(target) !== anchor) return;
    const state = new URLSearchParams(query || "");
    controls.forEach((control, k) => { control.value = state.get(names[k]) || ""; });
    const by = state.get("sort") || "";
    falling = by.startsWith("-");
    sorted = by.replace(/^-/, "");
    sort();
    show();
    if (query && heading) heading.scrollIntoView();
  }

  show();
  restore();
  addEventListener("hashchange", restore);
}

document.querySelectorAll("table.lookup").forEach(lookup);
document.querySelectorAll("a[data-filters]").forEach(link => {
  link.hash += `?${link.dataset.filters}`;
});

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach(details => { details.open = true; });
});
addEventListener("afterprint", () => { closed.forEach(details => { details.open = false; }); });
