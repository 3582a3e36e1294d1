// picture.go draws a run as a grid, a cell for each lane and phase: a page for any
// width of a screen, with nothing outside it, and a drawing for a document. What the
// cells say is report.go's affair.

package main

import (
	_ "embed"
	"fmt"
	"html"
	"html/template"
	"os"
	"path/filepath"
	"strings"
)

const (
	pageName    = "livepool.html"
	drawingName = "livepool.svg"
)

// palette is for light and dark screens. Red and teal differ in brightness too, and
// each cell says in words what its colour does.
const palette = `:root { color-scheme: light dark; --bg: #fff; --ink: #0f172a; --soft: #475569; --line: #cbd5e1; --cell: #f1f5f9;
  --ok: #dff3f0; --ok-ink: #0f4f49; --bad: #fbd5d3; --bad-ink: #991b1b; --bar: #0f766e; --bad-bar: #dc2626; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --ink: #e6edf3; --soft: #a3b1bf; --line: #30363d; --cell: #1a212a;
  --ok: #10312f; --ok-ink: #a5e3da; --bad: #581c1e; --bad-ink: #ffd0ce; --bar: #2dd4bf; --bad-bar: #f87171; } }
`

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// Class is the cell's colour.
func (c cell) Class() string {
	switch {
	case c.Bad:
		return "bad"
	case c.Max > 0:
		return "ok"
	}
	return ""
}

// Times are the lines below what a cell of jobs says.
func (c cell) Times() []string {
	if c.Max == 0 {
		return nil
	}
	return []string{"med " + showLatency(c.Median), "max " + showLatency(c.Max)}
}

// Bar is how long the slowest job took, in percent of what it was given.
func (c cell) Bar() float64 { return 100 * min(1, float64(c.Max)/float64(jobTimeout)) }

var barLegend = fmt.Sprintf("med: half of the jobs took no longer; the bar is the slowest job, full at the %.0f s that a job may take", jobTimeout.Seconds())

// draw writes the page into a directory, and the drawing beside it.
func (o *outcome) draw(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, drawingName), []byte(o.svg()), 0o644); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, pageName))
	if err != nil {
		return err
	}
	defer f.Close()
	kept, verdict := o.verdict()
	err = page.Execute(f, map[string]any{
		"Palette": template.CSS(palette), "Jobs": o.jobs(), "Workers": workers,
		"Server": o.site.title, "Took": fmt.Sprintf("%.0f\u00a0s", o.took.Seconds()), "FirstLook": o.site.firstLook,
		"Kept": kept, "Verdict": strings.Split(verdict, "\n"), "Sentence": o.sentence(), "Notice": o.notice(),
		"Lanes": o.lanes, "Tables": []table{o.byPhase(), o.summary()},
		"Footnote": footnote + "; " + barLegend, "Skipped": o.skipped,
	})
	if err != nil {
		return err
	}
	return f.Close()
}

// Head and Title are for the page.
func (l laneOutcome) Head() template.HTML {
	return template.HTML(strings.ReplaceAll(html.EscapeString(l.head), ".", ".<wbr>"))
}

func (l laneOutcome) Title() string { return l.title }

// The drawing's measures. It is as narrow as a telephone, where documents shrink
// their pictures, and its letters large enough to be read there.
const (
	width  = 400
	margin = 8
	gap    = 4
	line   = 18 // of text
	column = 54 // letters in a line
)

// drawing is an SVG that grows downwards.
type drawing struct {
	b     strings.Builder
	y     float64
	lanes int
}

func (d *drawing) printf(format string, args ...any) { fmt.Fprintf(&d.b, format+"\n", args...) }

// text writes a line at x, whose letters stand on y.
func (d *drawing) text(x, y float64, class, s string) {
	d.printf(`<text x="%.1f" y="%.1f" class="%s">%s</text>`, x, y, class, html.EscapeString(s))
}

// paragraph writes lines that are no wider than the drawing.
func (d *drawing) paragraph(class, s string) {
	for s != "" {
		end := len(s)
		if end > column {
			if end = strings.LastIndex(s[:column+1], " "); end < 0 {
				end = column
			}
		}
		d.text(margin, d.y+14, class, s[:end])
		d.y += line
		s = strings.TrimPrefix(s[end:], " ")
	}
}

func (d *drawing) cellWidth() float64 {
	return (width - 2*margin - gap*float64(d.lanes-1)) / float64(d.lanes)
}

func (d *drawing) cellX(lane int) float64 { return margin + float64(lane)*(d.cellWidth()+gap) }

// row draws one phase: its name, and its cells below.
func (d *drawing) row(r row) {
	d.paragraph("b", r.Label)
	d.y += 2
	var most int
	for _, c := range r.Cells {
		most = max(most, len(c.Lines)+len(c.Times()))
	}
	height := float64(most*line + 10)
	for i, c := range r.Cells {
		x, y := d.cellX(i), d.y+15
		d.printf(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3" class="cell %s"/>`, x, d.y, d.cellWidth(), height, c.Class())
		for _, s := range c.Lines {
			d.text(x+5, y, "b "+c.Class(), s)
			y += line
		}
		for _, s := range c.Times() {
			d.text(x+5, y, c.Class(), s)
			y += line
		}
		d.printf(`<rect x="%.1f" y="%.1f" width="%.1f" height="4" class="bar %s"/>`, x, d.y+height-4, c.Bar()/100*d.cellWidth(), c.Class())
	}
	d.y += height + 8
}

const drawingStyle = palette + `text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink); }
.b { font-weight: 600; } .soft { fill: var(--soft); } .ground { fill: var(--bg); }
text.ok { fill: var(--ok-ink); } text.bad { fill: var(--bad-ink); }
.cell { fill: var(--cell); } .cell.ok { fill: var(--ok); } .cell.bad { fill: var(--bad); }
.bar { fill: var(--bar); } .bar.bad { fill: var(--bad-bar); }
`

// svg is the drawing: the phases in which the lanes differ, and the names of the others.
func (o *outcome) svg() string {
	d := &drawing{y: margin, lanes: len(o.lanes)}
	for i, l := range o.lanes {
		first, last, dotted := strings.Cut(l.head, ".")
		if dotted { // too wide for one line
			d.text(d.cellX(i), d.y+14, "b", first+".")
			first = last
		}
		d.text(d.cellX(i), d.y+14+line, "b", first)
	}
	d.y += 2*line + 6
	t := o.byPhase()
	for _, r := range t.Rows {
		d.row(r)
	}
	if t.Same != nil {
		d.paragraph("", t.SameText())
		d.y += 8
	}
	d.paragraph("soft", "* under running jobs; "+barLegend)
	d.paragraph("soft", fmt.Sprintf("%s jobs each, %s", o.jobs(), o.site.title))
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0[2]f" width="%[1]d" height="%.0[2]f" role="img">
<title>%[3]s</title>
<style>%[4]s</style>
<rect width="100%%" height="100%%" rx="6" class="ground"/>
%[5]s</svg>
`, width, d.y+margin, html.EscapeString(o.sentence()), drawingStyle, d.b.String())
}
