"""How the page looks: light and dark, at a desk and on a phone."""

from headrace.serving import crew, diagram

STYLE = f"""
:root {{
  --page: #f6f7f9; --card: #ffffff; --node: #ffffff; --ink: #10192b; --dim: #5b677a; --line: #ccd3dd;
  --accent: #2563eb; --accent-soft: #e8effd; --warn: #c2410c; --warn-soft: #fdf0e6; --good: #15803d;
}}
.body--dark {{
  --page: #0d1320; --card: #151d2d; --node: #1b2538; --ink: #e8edf5; --dim: #98a5b9; --line: #36445c;
  --accent: #6ea0ff; --accent-soft: #1b2c4f; --warn: #fb923c; --warn-soft: #3a2717; --good: #4ade80;
}}
body {{ background: var(--page) !important; color: var(--ink); }}
.nicegui-content {{ padding: 0; gap: 0; }}
.bar {{ background: var(--card); border-bottom: 1px solid var(--line); padding: 8px 20px; width: 100%; }}
.bar .line {{ width: auto; justify-content: flex-end; flex-wrap: wrap; gap: 0 10px; }}
.bar a {{ color: var(--dim); text-decoration: none; }} .bar a:hover {{ color: var(--accent); }}
.icon {{ width: 24px; height: 24px; line-height: 0; }}
.state::before {{ content: "●"; font-size: 9px; margin-right: 5px; vertical-align: 1px; }}
.line {{ display: flex; align-items: center; width: 100%; gap: 10px; flex-wrap: nowrap; }}
.mark {{ font-weight: 700; font-size: 17px; line-height: 1.4; letter-spacing: -0.01em; margin: 0; }}
.board {{ width: 100%; max-width: 1800px; margin: 0 auto; padding: 14px 20px; }}
.grid {{ gap: 12px; display: grid; grid-template-columns: repeat(12, minmax(0, 1fr)); }}
.card {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px;
  min-width: 0; overflow: hidden; }}
.tall {{ height: max(276px, calc(100vh - 522px)); display: flex; flex-direction: column; }} .tall > * {{ flex: none; }}
.tall .fills {{ flex: 1 1 0; min-height: 0; overflow: auto; width: 100%; }}
.half {{ flex: 1 1 0; min-height: 0; display: flex; flex-direction: column; }} .half + .half {{ margin-top: 8px; }}
.scrolls {{ overflow-x: auto; }}
.wide {{ grid-column: span 12; }} .five {{ grid-column: span 5; }} .four {{ grid-column: span 4; }}
.three {{ grid-column: span 3; }} .two {{ grid-column: span 2; }}
.title {{ margin: 0; line-height: 1.5; font-size: 12px; font-weight: 600;
  color: var(--dim); text-transform: uppercase; letter-spacing: 0.05em; }}
.number {{ font-size: 24px; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }}
.tile {{ padding: 8px 14px; gap: 0; }}
.slim {{ padding: 7px 14px; display: flex; gap: 4px 14px; align-items: baseline; }}
.note {{ font-size: 12px; color: var(--dim); }}
.dim {{ color: var(--dim); }} .warn {{ color: var(--warn); }} .good {{ color: var(--good); }}
.list {{ width: 100%; border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; }}
.list th {{ text-align: left; color: var(--dim); font-weight: 500; padding: 3px 10px 3px 0; white-space: nowrap; }}
.list td {{ padding: 3px 10px 3px 0; border-top: 1px solid color-mix(in srgb, var(--line) 45%, transparent);
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; max-width: 190px; }}
.list .num {{ text-align: right; }}
.alarm {{ border-left: 3px solid var(--warn); padding: 3px 0 3px 10px; margin-top: 7px; font-size: 12.5px; }}
.refusal {{ border-left: 3px solid var(--line); padding: 3px 0 3px 10px; margin-top: 7px; font-size: 12.5px; }}
.q-btn-toggle {{ box-shadow: none !important; border: 1px solid var(--line); border-radius: 7px; }}
@media (max-width: 1000px) {{ .five, .four, .three {{ grid-column: span 12; }} .two {{ grid-column: span 4; }} }}
@media (max-width: 600px) {{
  .board {{ padding: 10px; }} .grid {{ gap: 10px; }} .tile {{ padding: 6px 10px; }}
  .bar {{ padding: 8px 12px; flex-wrap: wrap; }}
  .tall {{ height: 380px; }} .number {{ font-size: 20px; }} .list td, .list th {{ padding-right: 7px; }}
  .bar .aside {{ display: none; }} .bar .line {{ order: 1; flex-basis: 100%; justify-content: flex-start; }}
}}
{diagram.STYLE}{crew.STYLE}
"""
