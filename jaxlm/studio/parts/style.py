"""The look of all pages: one sheet for day and night, wide and narrow, mouse and keyboard."""

STYLE = """
:root { --line: #d9dee4; --paper: #ffffff; --back: #f4f6f8; --ink: #1b2127; --soft: #56606b; --red: #b3261e; }
.body--dark { --q-primary: #4aa3dc !important; --line: #323a43; --paper: #1b2026; --back: #12161a; --ink: #e8ecf0;
    --soft: #a3adb8; --red: #ff8a80; }
body { background: var(--back) !important; color: var(--ink); font-variant-numeric: tabular-nums; }
.nicegui-content { padding: 0; align-items: stretch; }
.page { width: 100%; max-width: 1180px; margin: 0 auto; padding: 16px; gap: 16px; display: flex;
    flex-direction: column; }
.head { width: 100%; background: var(--paper); border-bottom: 1px solid var(--line); position: sticky; top: 0;
    z-index: 9; }
.head-inner { max-width: 1180px; margin: 0 auto; padding: 6px 16px; display: flex; align-items: center; gap: 4px;
    flex-wrap: nowrap; overflow-x: auto; }
.brand { font-weight: 650; margin-right: 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.way { color: var(--soft); padding: 8px 10px; border-radius: 6px; text-decoration: none; white-space: nowrap; }
.way:hover { background: var(--back); } .way.here { color: var(--ink); font-weight: 600; background: var(--back); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 16px; width: 100%;
    min-width: 0;
  display: flex; flex-direction: column; gap: 10px; }
.stack { display: flex; flex-direction: column; gap: 16px; width: 100%; }
.q-btn { text-transform: none; } .q-btn-toggle .q-btn { padding: 4px 12px; }
    .q-expansion-item .q-item { padding-left: 4px; padding-right: 4px; border-radius: 6px; }
.q-field--with-bottom { padding-bottom: 18px; }
.title { font-size: 1.05rem; font-weight: 600; } .soft { color: var(--soft); } .small { font-size: 0.85rem; }
.bad { color: var(--red); } .grow { flex: 1 1 0; min-width: 0; }
.line { display: flex; gap: 10px; align-items: center; flex-wrap: wrap; width: 100%; }
.numbers { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; width: 100%; }
.number { border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; min-height: 58px; }
.number .value { font-size: 1.1rem; font-weight: 600; white-space: nowrap; overflow: hidden;
    text-overflow: ellipsis; }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.log { height: 300px; overflow: auto; background: var(--back); border: 1px solid var(--line); border-radius: 8px;
    padding: 8px 10px; width: 100%; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(215px, 1fr)); gap: 10px; width: 100%; }
.pick { border: 1px solid var(--line); border-radius: 10px; padding: 12px; cursor: pointer;
    background: var(--paper); text-align: left;
  color: var(--ink); font: inherit; display: flex; flex-direction: column; gap: 2px; min-width: 0; }
.pick:hover { border-color: #0072B2; } .pick.chosen { border-color: #0072B2; box-shadow: 0 0 0 1px #0072B2; }
.steps { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px; width: 100%; }
.steps .pick .summary { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.fields { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 4px 16px; width: 100%; }
.fields.narrow { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 8px; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; width: 100%; }
.piece { border-radius: 3px; white-space: pre-wrap; padding: 1px 0; color: #14181c; }
.turn { border-left: 3px solid var(--line); padding: 2px 10px; } .turn.learned { border-color: #009E73; }
.chip { border: 1px solid var(--line); border-radius: 99px; padding: 1px 10px; font-size: 0.8rem;
    white-space: nowrap; }
.chip.training, .chip.running { border-color: #0072B2; color: #0072B2; } .chip.done { border-color: #009E73;
    color: #00794f; }
.body--dark .chip.training, .body--dark .chip.running { color: #56B4E9; } .body--dark .chip.done { color: #4fd1a5; }
.chip.failed, .chip.unreadable, .chip.killed { border-color: var(--red); color: var(--red); }
.said { border: 1px solid var(--line); border-radius: 10px; padding: 8px 12px; white-space: pre-wrap;
    overflow-wrap: anywhere; max-width: 100%;
  unicode-bidi: plaintext; }
.said > div { display: inline; } .said > .begin { color: var(--soft); }
.said.user { align-self: flex-end; background: rgba(0, 114, 178, 0.1); } .said.assistant { align-self: stretch;
    background: var(--paper); }
.chart { width: 100%; height: 300px; } .chart.low { height: 190px; }
a:focus-visible, button:focus-visible, .pick:focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
.q-table__container { background: var(--paper) !important; }
.q-table td { max-width: 260px; overflow: hidden; text-overflow: ellipsis; }
@media (max-width: 700px) {
  .page { padding: 10px; gap: 10px; } .card { padding: 12px; } .two { grid-template-columns: minmax(0, 1fr); }
  .steps .summary { display: none; } .steps .pick { padding: 8px 4px; text-align: center; }
    .steps .title { font-size: 0.82rem; }
  .stack { gap: 10px; }
  .numbers { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .brand { margin-left: 4px; } .brand:has(+ nav) { display: none; }
  .head-inner { padding: 4px 6px; } .way { padding: 8px; }
  .cards { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""
