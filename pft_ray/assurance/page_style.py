"""The style sheet of a report's page: one column, light and dark, no outside files."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f4f6f8; --ink: #16191d; --muted: #525b66;
  --line: #cfd5db; --private: #0b5cad; --baseline: #9a4a00;
  --others: #7f8a96; --left: #eef1f4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121518; --panel: #1c2126; --ink: #e9ecef; --muted: #aab3bc;
    --line: #3b434b; --private: #74b6f7; --baseline: #f0ac5a;
    --others: #7d8894; --left: #262c32;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.1rem 1rem 3rem; max-width: 46rem;
  background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.35rem; line-height: 1.25; margin: 0; }
h2 {
  font-size: 1.1rem; margin: 2.2rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--line);
}
p { margin: .5rem 0; }
.muted, figcaption, caption { color: var(--muted); font-size: .9rem; }
.lead { font-size: 1.08rem; margin: .7rem 0 .8rem; }
.note {
  background: var(--panel); border-left: 4px solid var(--baseline);
  padding: .5rem .8rem; margin: .8rem 0;
}
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; padding: 0; }
.tile {
  flex: 1 1 9.5rem; background: var(--panel); border-radius: .5rem;
  padding: .55rem .8rem; margin: 0;
}
.small .tile { flex-basis: 5rem; }
.tile dt { color: var(--muted); font-size: .9rem; }
.tile dd { margin: 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
.tile .value { font-size: 1.5rem; font-weight: 650; line-height: 1.25; }
.small .value { font-size: 1.2rem; }
.value.private { color: var(--private); }
.scroll { overflow-x: auto; margin: .8rem 0; }
.scroll:focus-visible, summary:focus-visible {
  outline: 2px solid var(--private); outline-offset: 2px;
}
table { border-collapse: collapse; font-size: .92rem; width: 100%; }
caption { text-align: left; padding-bottom: .3rem; }
th, td {
  text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
}
th { font-weight: 550; }
.wide th, .wide td { white-space: nowrap; }
.wide th[scope="row"] { white-space: normal; min-width: 7rem; max-width: 12rem; }
.facts th { width: 42%; color: var(--muted); font-weight: 400; }
figure { margin: .8rem 0 1.2rem; }
svg { display: block; overflow: visible; width: 100%; max-width: 29rem; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre {
  background: var(--panel); padding: .6rem .8rem; border-radius: .4rem;
  white-space: pre-wrap;
}
ul { padding-left: 1.2rem; margin: .5rem 0; }
li { margin: .25rem 0; }
summary { cursor: pointer; color: var(--muted); }
"""
