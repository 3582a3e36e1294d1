package compare

import (
	"bytes"
	_ "embed"
	"fmt"
	"html"
	"html/template"
	"strings"

	"github.com/livepool/livepool/bench/gauge"
)

const pageName = "compare.html"

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is the report in one file, with nothing outside it.
func (r *report) page() ([]byte, error) {
	var b bytes.Buffer
	type line struct{ Name, What string }
	var lines []line
	for _, name := range r.order {
		lines = append(lines, line{name, r.Contenders[name]})
	}
	err := pageTemplate.Execute(&b, map[string]any{"Report": r, "Contenders": lines})
	return b.Bytes(), err
}

// Charts are the drawn columns.
func (t *table) Charts() (all []template.HTML) {
	for _, i := range t.charts {
		if i < len(t.Columns) {
			all = append(all, t.chart(i))
		}
	}
	return all
}

// The chart's measures, in units that shrink with the screen. It is as narrow as a
// telephone, and its letters large enough to be read there.
const (
	chartWidth = 360
	barHeight  = 20
	nameWidth  = 128
	textWidth  = 112
	cut        = 4 // a bar longer than so many medians is cut off
)

// chart draws a bar for each contender, as long as its figure is large.
func (t *table) chart(i int) template.HTML {
	var values []float64
	for _, r := range t.Rows {
		if v := r.value(i); v != nil {
			values = append(values, *v)
		}
	}
	if len(values) == 0 {
		return ""
	}
	c := t.Columns[i]
	longest := gauge.Quantile(values, 1)
	if typical := gauge.Quantile(values, 0.5); typical > 0 {
		longest = min(longest, cut*typical)
	}
	direction := "shorter is better"
	if c.more {
		direction = "longer is better"
	}
	var b strings.Builder
	height := 22 + barHeight*len(t.Rows)
	title := fmt.Sprintf("%s: %s", t.Title, c.Name)
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s"><title>%[3]s</title>`, chartWidth, height, html.EscapeString(title))
	fmt.Fprintf(&b, `<text x="0" y="13" class="head">%s, %s</text>`, html.EscapeString(c.Name), direction)
	for n, r := range t.Rows {
		y := 22 + n*barHeight
		class := "other"
		if r.lane.live {
			class = "live"
		}
		fmt.Fprintf(&b, `<text x="0" y="%d">%s</text>`, y+14, html.EscapeString(r.Contender))
		v := r.value(i)
		if v == nil {
			fmt.Fprintf(&b, `<text x="%d" y="%d" class="none">no figure</text>`, nameWidth, y+14)
			continue
		}
		width := 0.0
		if longest > 0 {
			width = max(0, min(*v, longest)) / longest * (chartWidth - nameWidth - textWidth)
		}
		shown := r.Cells[i].short()
		if *v > longest {
			shown = "» " + shown
		}
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" class="%s"/>`, nameWidth, y+3, max(1, width), barHeight-6, class)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%s</text>`, nameWidth+max(1, width)+4, y+14, html.EscapeString(shown))
	}
	b.WriteString("</svg>")
	return template.HTML(b.String())
}
