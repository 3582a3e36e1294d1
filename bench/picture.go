// picture.go draws a run: one page with nothing outside it, the latency of
// every job over time with the faults as bands, and the tables of report.go.

package main

import (
	"fmt"
	"html/template"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The drawing's measures, in its own units, which are pixels at full width.
const (
	width      = 1200
	left       = 64  // room for the latency axis
	right      = 16  //
	head       = 48  // room for the names of the phases
	stripTitle = 40  // above each lane's strip
	strip      = 170 // a lane's strip
	foot       = 40  // room for the time axis
)

// The latency axis is logarithmic.
const (
	fastest = 500 * time.Microsecond
	slowest = 10 * time.Second
)

var laneColors = map[string]string{"plain": "#64748b", "retry": "#b45309", "livepool": "#0f766e", "units": "#1d4ed8"}

const (
	pageName    = "livepool.html"
	drawingName = "livepool.svg"
)

const failedColor = "#dc2626"

// chart places a run on the drawing.
type chart struct {
	o *outcome
	b strings.Builder
}

// svg is the drawing.
func (o *outcome) svg() string {
	c := &chart{o: o}
	height := head + len(o.lanes)*(stripTitle+strip) + foot
	c.printf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="100%%" role="img" font-family="system-ui, sans-serif" font-size="12">`, width, height)
	c.printf(`<title>Latency of every job over time, with the faults</title><rect width="%d" height="%d" fill="#ffffff"/>`, width, height)
	c.phases()
	for i, l := range o.lanes {
		c.lane(l, head+i*(stripTitle+strip)+stripTitle)
	}
	c.timeAxis(height - foot)
	c.printf(`</svg>`)
	return c.b.String()
}

func (c *chart) printf(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }

func (c *chart) x(t time.Duration) float64 {
	return left + t.Seconds()/c.o.end().Seconds()*(width-left-right)
}

// y places a latency within a strip whose top is given.
func y(top int, d time.Duration) float64 {
	d = min(max(d, fastest), slowest)
	share := math.Log(float64(d)/float64(fastest)) / math.Log(float64(slowest)/float64(fastest))
	return float64(top) + strip*(1-share)
}

// end is when the last phase was over.
func (o *outcome) end() time.Duration {
	if len(o.marks) == 0 {
		return time.Second
	}
	return o.marks[len(o.marks)-1].end
}

// phases names the phases at the top.
func (c *chart) phases() {
	for i, m := range c.o.marks {
		x := c.x(m.begin) + 4
		c.printf(`<text x="%.1f" y="14" font-weight="600" fill="#0f172a">%d</text>`, x, i+1)
		for line, word := range twoLines(c.o.phases[m.phase].name) {
			c.printf(`<text x="%.1f" y="%d" font-size="11" fill="#334155">%s</text>`, x, 29+13*line, template.HTMLEscapeString(word))
		}
	}
}

// twoLines breaks a name after its first word.
func twoLines(name string) []string { return strings.SplitN(name, " ", 2) }

// lane draws one strip, the grid first and the failures last, on top.
func (c *chart) lane(l laneOutcome, top int) {
	color := laneColors[l.name]
	c.printf(`<text x="%d" y="%d" font-size="14" font-weight="700" fill="%s">%s</text>`, left, top-9, color, l.name)
	c.printf(`<text x="%d" y="%d" fill="#475569">%s</text>`, left+72, top-9, template.HTMLEscapeString(l.title))
	c.printf(`<rect x="%d" y="%d" width="%d" height="%d" fill="#f8fafc"/>`, left, top, width-left-right, strip)
	c.bands(top)
	c.latencyAxis(top)
	for _, s := range l.samples {
		if !s.failed() {
			c.printf(`<circle cx="%.1f" cy="%.1f" r="2" fill="%s" fill-opacity="0.55"/>`, c.x(s.arrived), y(top, s.latency), color)
		}
	}
	for _, s := range l.samples {
		if s.failed() {
			c.cross(c.x(s.arrived), y(top, s.latency), s.failure)
		}
	}
	c.failuresByPhase(l, top)
}

// bands draws the phases' borders and the faults.
func (c *chart) bands(top int) {
	for _, m := range c.o.marks {
		c.printf(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#cbd5e1" stroke-dasharray="2 3"/>`, c.x(m.begin), c.x(m.begin), top, top+strip)
		if m.to > 0 {
			from := c.x(m.from)
			c.printf(`<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="#fecaca" fill-opacity="0.75"/>`, from, top, max(c.x(m.to)-from, 4), strip)
		}
	}
}

func (c *chart) latencyAxis(top int) {
	for _, d := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, slowest} {
		at := y(top, d)
		c.printf(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#e2e8f0"/>`, left, width-right, at, at)
		c.printf(`<text x="%d" y="%.1f" text-anchor="end" fill="#475569">%s</text>`, left-6, at+4, d)
	}
	c.printf(`<text transform="translate(14 %d) rotate(-90)" text-anchor="middle" fill="#475569">job latency (log)</text>`, top+strip/2)
}

func (c *chart) cross(x, y float64, failure string) {
	c.printf(`<path d="M%.1f %.1fl8 8m0 -8l-8 8" stroke="%s" stroke-width="1.8" fill="none"><title>%s</title></path>`,
		x-4, y-4, failedColor, template.HTMLEscapeString(failure))
}

// failuresByPhase writes how many jobs failed, because crosses hide each other.
func (c *chart) failuresByPhase(l laneOutcome, top int) {
	for _, m := range c.o.marks {
		if n := failures(inPhase(l.samples, m.phase)); n > 0 {
			c.printf(`<text x="%.1f" y="%d" text-anchor="end" font-weight="700" fill="%s" stroke="#ffffff" stroke-width="3" paint-order="stroke">%d failed</text>`,
				c.x(m.end)-4, top+strip-7, failedColor, n)
		}
	}
}

func (c *chart) timeAxis(at int) {
	for t := time.Duration(0); t <= c.o.end(); t += 5 * time.Second {
		x := c.x(t)
		c.printf(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#64748b"/>`, x, x, at, at+5)
		c.printf(`<text x="%.1f" y="%d" text-anchor="middle" fill="#475569">%.0f s</text>`, x, at+18, t.Seconds())
	}
	c.printf(`<text x="%d" y="%d" text-anchor="middle" fill="#475569">when the job arrived</text>`, (left+width-right)/2, at+34)
}

// draw writes the page into a directory, and the drawing alone beside it.
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
		"Server": o.site.title, "Took": fmt.Sprintf("%.0f s", o.took.Seconds()),
		"Jobs": len(o.lanes[0].samples), "Workers": workers,
		"Kept": kept, "Verdict": verdict, "FirstLook": o.site.firstLook,
		"Picture": template.HTML(o.svg()),
		"Lanes":   o.laneNames(), "Colors": laneColors, "ByPhase": o.byPhase(), "Summary": o.summary(),
		"Footnote": footnote, "Skipped": o.skipped,
	})
	if err != nil {
		return err
	}
	return f.Close()
}

func (o *outcome) laneNames() (names []string) {
	for _, l := range o.lanes {
		names = append(names, l.name)
	}
	return names
}

var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>livepool: a worker whose connections die</title>
<style>
body { margin: 0 auto; max-width: 1200px; padding: 24px 16px 48px; background: #fff; color: #0f172a; font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 4px; font-size: 26px; }
h2 { margin: 32px 0 8px; font-size: 18px; }
p { margin: 4px 0; color: #334155; }
.verdict { display: inline-block; margin: 12px 0; padding: 6px 14px; border-radius: 6px; font-weight: 600; color: #fff; background: #0f766e; }
.verdict.broken { background: #dc2626; }
.caveat { color: #b45309; font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 8px 0 12px; font-size: 13px; color: #334155; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid #e2e8f0; text-align: left; font-weight: normal; }
thead th { font-weight: 600; border-bottom: 2px solid #cbd5e1; }
td.minor { padding-left: 20px; color: #64748b; }
td { white-space: nowrap; }
.what { color: #64748b; white-space: normal; }
.bad { color: #dc2626; font-weight: 600; }
</style>
</head>
<body>
<h1>A worker whose connections die</h1>
<p>The same {{.Jobs}} jobs, the same faults, at the same time, {{.Workers}} workers on each side, on {{.Server}}. It took {{.Took}}.</p>
{{with .FirstLook}}<p class="caveat">{{.}}</p>{{end}}
<div class="verdict{{if not .Kept}} broken{{end}}">{{.Verdict}}</div>
<div class="legend">
<span><svg width="10" height="10"><circle cx="5" cy="5" r="3" fill="#475569"/></svg>a job that succeeded</span>
<span><svg width="12" height="12"><path d="M2 2l8 8m0 -8l-8 8" stroke="#dc2626" stroke-width="1.8"/></svg>a job that failed</span>
<span><svg width="14" height="12"><rect width="14" height="12" fill="#fecaca"/></svg>while a fault lasts</span>
<span><svg width="14" height="12"><path d="M7 0v12" stroke="#94a3b8" stroke-dasharray="2 3"/></svg>a phase begins: first the workers idle, then jobs arrive</span>
</div>
{{.Picture}}
<h2>What happened to the connections</h2>
<table>
<thead><tr><th>phase</th><th>what happens</th>{{range .Lanes}}<th style="color: {{index $.Colors .}}">{{.}}</th>{{end}}</tr></thead>
<tbody>{{range .ByPhase}}
<tr><td>{{.Label}}</td><td class="what">{{.Note}}</td>{{range .Cells}}<td{{if .Bad}} class="bad"{{end}}>{{.Text}}</td>{{end}}</tr>{{end}}
</tbody>
</table>
<p>{{.Footnote}}</p>{{range .Skipped}}
<p class="caveat">skipped {{.}}</p>{{end}}
<h2>All in all</h2>
<table>
<thead><tr><th></th>{{range .Lanes}}<th style="color: {{index $.Colors .}}">{{.}}</th>{{end}}</tr></thead>
<tbody>{{range .Summary}}
<tr><td{{if .Minor}} class="minor"{{end}}>{{.Label}}</td>{{range .Cells}}<td{{if .Bad}} class="bad"{{end}}>{{.Text}}</td>{{end}}</tr>{{end}}
</tbody>
</table>
</body>
</html>
`))
