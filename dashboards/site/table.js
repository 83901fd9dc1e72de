// Tables: accessible, sortable by their headings, downloadable as CSV.
"use strict";
(function (PS) {
  const h = PS.h;

  // columns: [{label, of: row => text or node, sort: row => value, number: bool}]
  PS.table = function (caption, columns, rows, options) {
    const body = h("tbody");
    const heads = columns.map((column) => headOf(column));
    const table = h("table", {}, h("caption", {}, h("span", {}, caption)), h("thead", {}, h("tr", {}, heads)), body);
    fill(rows);
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);

    function headOf(column) {
      const head = h("th", { scope: "col", class: column.number ? "number" : null });
      if (!column.sort) {
        head.append(column.label);
        return head;
      }
      head.append(h("button", { type: "button", onclick: () => sortBy(column, head) }, column.label));
      return head;
    }

    function sortBy(column, head) {
      const isUp = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const sorted = [...rows].sort((a, b) => compare(column.sort(a), column.sort(b)));
      fill(isUp ? sorted : sorted.reverse());
    }

    function fill(ordered) {
      body.replaceChildren(...ordered.map((row) =>
        h("tr", { class: options && options.rowClass ? options.rowClass(row) : null },
          columns.map((column, k) => h(k ? "td" : "th", { scope: k ? null : "row", class: column.number ? "number" : null }, column.of(row))))));
    }
  };

  function compare(a, b) {
    if (a === b) return 0;
    if (a === null || a === undefined) return 1;
    if (b === null || b === undefined) return -1;
    return a < b ? -1 : 1;
  }

  // Cells that a spreadsheet would read as a formula begin with an apostrophe.
  PS.csv = function (columns, rows) {
    const cell = (value) => {
      let text = value === null || value === undefined ? "" : String(value);
      if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  };

  PS.download = function (name, blob) {
    const url = URL.createObjectURL(blob);
    const anchor = h("a", { href: url, download: name });
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };

  PS.definitions = (rows) => h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
})(window.PS);
