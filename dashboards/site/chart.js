// A figure: an ECharts chart, the table of its numbers, downloads, and the page's light or dark colours.
"use strict";
(function (PS) {
  const h = PS.h;
  // Okabe and Ito's colours, which people with any common colour vision tell apart; black and yellow are left out.
  const LIGHT = ["#0072B2", "#D55E00", "#007A5A", "#A0527F", "#8A6D00", "#3A86C8", "#5B5B5B", "#8C3B00"];
  const DARK = ["#56B4E9", "#F5793A", "#2CC99B", "#E69FC8", "#F0E442", "#9AC7F5", "#BDBDBD", "#FFB380"];
  PS.SHAPES = ["circle", "rect", "triangle", "diamond", "pin", "arrow", "roundRect", "emptyCircle"];
  const charts = new Set();

  PS.isDark = () => document.documentElement.dataset.theme === "dark";
  PS.colour = (number) => (PS.isDark() ? DARK : LIGHT)[number % LIGHT.length];
  PS.ink = () => (PS.isDark() ? "#e8e8e8" : "#1b1b1b");
  PS.faint = () => (PS.isDark() ? "#3a3f47" : "#d9dde3");
  PS.good = () => PS.colour(2);
  PS.bad = () => PS.colour(1);

  // make: () => ECharts option, called again when the theme changes. columns, rows: the table of the chart's numbers.
  // isEmulated: the plot area is hatched and says so.
  PS.figure = function ({ title, describe, make, columns, rows, name, height, isEmulated, onclick }) {
    const fileName = isEmulated ? `${name}-EMULATED` : name;
    const box = h("div", { class: "plot", role: "img", "aria-label": describe || title, style: `height:${height || 420}px` });
    const details = h("details", { class: "data", ontoggle: () => details.children.length < 2 && details.append(dataTable(title, columns, rows)) }, h("summary", {}, `Table: ${title}`));
    const tools = h("div", { class: "tools" },
      h("button", { type: "button", onclick: () => PS.download(`${fileName}.csv`, new Blob([PS.csv(columns, rows)], { type: "text/csv;charset=utf-8" })) }, "CSV"),
      h("button", { type: "button", onclick: () => savePicture() }, "PNG"));
    const figure = h("figure", { class: isEmulated ? "is-emulated" : null }, h("figcaption", {}, h("h3", {}, title, " ", PS.emulated(isEmulated)), tools), box, details);
    let chart = null;
    const entry = { box, draw, resize: () => chart && chart.resize() };
    charts.add(entry);
    requestAnimationFrame(draw);
    return figure;

    function draw() {
      if (!box.isConnected) return;
      if (chart) chart.dispose();
      chart = window.echarts.init(box, null, { renderer: "canvas" });
      chart.setOption({ ...base(isEmulated), ...make() });
      if (onclick) chart.on("click", onclick);
      box.dataset.drawn = "1";
    }

    // The chart with its title above it, and the word EMULATED where that is so: a picture leaves its page.
    function savePicture() {
      const picture = new Image();
      picture.onload = () => {
        const canvas = h("canvas", { width: picture.width, height: picture.height + 64 });
        const pen = canvas.getContext("2d");
        pen.fillStyle = PS.isDark() ? "#16191d" : "#ffffff";
        pen.fillRect(0, 0, canvas.width, canvas.height);
        pen.fillStyle = PS.ink();
        pen.font = "bold 30px sans-serif";
        pen.fillText(isEmulated ? `EMULATED  ${title}` : title, 20, 44);
        pen.drawImage(picture, 0, 64);
        canvas.toBlob((blob) => PS.download(`${fileName}.png`, blob), "image/png");
      };
      picture.src = chart.getDataURL({ pixelRatio: 2, backgroundColor: PS.isDark() ? "#16191d" : "#ffffff" });
    }
  };

  // Made when it is opened; at most 20,000 cells, the rest is in the CSV.
  function dataTable(title, columns, rows) {
    const shown = rows.slice(0, Math.max(100, Math.floor(20000 / columns.length)));
    const table = PS.table(title, columns.map((label, k) => ({
      label,
      number: rows.length > 0 && typeof rows[0][k] === "number",
      of: (row) => (typeof row[k] === "number" ? trimmed(row[k]) : row[k] === null || row[k] === undefined ? PS.DASH : String(row[k])),
      sort: (row) => row[k],
    })), shown);
    return shown.length < rows.length ? h("div", {}, table, h("p", {}, `${rows.length - shown.length} more rows are in the CSV.`)) : table;
  }

  const trimmed = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6))));

  function base(isEmulated) {
    const text = { color: PS.ink() };
    return {
      animation: false,
      textStyle: text,
      backgroundColor: "transparent",
      aria: { enabled: true, decal: { show: false } },
      graphic: undefined,
      tooltip: { trigger: "item", confine: true, renderMode: "richText", backgroundColor: PS.isDark() ? "#22272e" : "#ffffff", textStyle: text },
    };
  }

  PS.axis = function (name, options) {
    return {
      name, nameLocation: "middle", nameGap: 34, scale: true, nameTextStyle: { color: PS.ink() },
      axisLabel: { color: PS.ink() }, axisLine: { lineStyle: { color: PS.ink() } },
      splitLine: { lineStyle: { color: PS.faint() } }, ...options,
    };
  };

  PS.legend = (names, options) => ({ data: names, type: "scroll", top: 0, textStyle: { color: PS.ink() }, ...options });

  // A custom series of whiskers. data: [x, y, xLow, xHigh, yLow, yHigh], null where there is no interval
  PS.whiskers = function (name, colour, data) {
    return {
      type: "custom", name, silent: true, z: 1, data, encode: { x: [0], y: [1] }, tooltip: { show: false },
      renderItem: (params, api) => {
        const [x, y, xLow, xHigh, yLow, yHigh] = [0, 1, 2, 3, 4, 5].map((k) => api.value(k));
        const lines = [];
        const style = { stroke: colour, lineWidth: 1.5, fill: null };
        const line = (from, to) => lines.push({ type: "line", shape: { x1: from[0], y1: from[1], x2: to[0], y2: to[1] }, style });
        if (isFinite(yLow) && isFinite(yHigh)) line(api.coord([x, yLow]), api.coord([x, yHigh]));
        if (isFinite(xLow) && isFinite(xHigh)) line(api.coord([xLow, y]), api.coord([xHigh, y]));
        return { type: "group", children: lines };
      },
    };
  };

  PS.redraw = function () {
    for (const entry of [...charts]) {
      if (entry.box.isConnected) entry.draw();
      else charts.delete(entry);
    }
  };
  window.addEventListener("resize", () => charts.forEach((entry) => entry.box.isConnected && entry.resize()));
})(window.PS);
