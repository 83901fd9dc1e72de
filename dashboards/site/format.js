// Numbers as text: the same digits and units as the terminal.
"use strict";
(function (PS) {
  const DASH = "–";

  // Three significant digits, thousands separated.
  PS.number = function (value) {
    if (value === null || value === undefined || !isFinite(value)) return DASH;
    if (value === 0) return "0";
    const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
    return value.toLocaleString("en-US", { minimumFractionDigits: Math.min(digits, 12), maximumFractionDigits: Math.min(digits, 12) });
  };

  // A whole number, thousands separated.
  PS.count = (value) => (value === null || value === undefined || !isFinite(value) ? DASH : Math.round(value).toLocaleString("en-US"));

  PS.duration = function (seconds) {
    if (seconds === null || seconds === undefined) return DASH;
    const size = Math.abs(seconds);
    if (size >= 1) return `${PS.number(seconds)} s`;
    return size >= 1e-3 ? `${PS.number(seconds * 1e3)} ms` : `${PS.number(seconds * 1e6)} µs`;
  };

  PS.bytes = function (value) {
    if (value === null || value === undefined) return DASH;
    const units = [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]];
    const [unit, factor] = units.find(([, size]) => Math.abs(value) >= size) || ["B", 1];
    return `${PS.number(value / factor)} ${unit}`;
  };

  // A value in a metric's unit. unit: as in the table of metrics
  PS.value = function (value, unit) {
    if (value === null || value === undefined) return DASH;
    if (unit === "s") return PS.duration(value);
    if (unit === "bytes") return PS.bytes(value);
    if (unit === "ratio") return `${(value * 100).toFixed(1)} %`;
    return PS.number(value);
  };

  // 1.634 [1.601, 1.668]
  PS.ratio = function (ratio, low, high) {
    if (ratio === null || ratio === undefined) return DASH;
    const words = ratio.toFixed(3);
    return low === null || low === undefined ? words : `${words} [${low.toFixed(3)}, ${high.toFixed(3)}]`;
  };

  PS.percent = function (ratio) {
    const change = (ratio - 1) * 100;
    return `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(1)} %`;
  };

  PS.day = (utcNs) => (utcNs === null || utcNs === undefined ? DASH : new Date(utcNs / 1e6).toISOString().slice(0, 10));
  PS.minute = (utcNs) => (utcNs === null || utcNs === undefined ? DASH : new Date(utcNs / 1e6).toISOString().slice(0, 16).replace("T", " "));
  PS.DASH = DASH;
})(window.PS);
