package setting

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/livepool/livepool/internal/spelling"
)

// Table has all settings of C.
type Table[C any] []Setting[C]

// Read reads name=value pairs of a DSN into c, and returns which settings they give.
func (t Table[C]) Read(c *C, pairs []string) (given map[string]bool, err error) {
	given = map[string]bool{}
	for _, pair := range pairs {
		name, escaped, hasValue := strings.Cut(pair, "=")
		i := slices.IndexFunc(t, func(s Setting[C]) bool { return s.DSN == name })
		switch {
		case i < 0:
			return nil, t.unknown(name)
		case given[name]:
			return nil, fmt.Errorf("livepool: DSN parameter %s is given twice", name)
		}
		given[name] = true
		s := t[i]
		value, err := url.QueryUnescape(escaped)
		if err != nil || !hasValue || !s.Set(c, value) || !s.OK(c) {
			return nil, fmt.Errorf("livepool: DSN parameter %s=%s: takes %s", name, escaped, s.Takes)
		}
	}
	return given, nil
}

// Check reports the first setting of c that is out of its range.
func (t Table[C]) Check(c *C) error {
	for _, s := range t {
		if !s.OK(c) {
			return fmt.Errorf("livepool: %s (%s) is %s: takes %s", s.Field, s.DSN, s.Show(c), s.Takes)
		}
	}
	return nil
}

// FindMisplaced finds, among the parameters that the driver would set as variables of the
// server, those that were meant for the table: misspelt, or by the name that another pool
// has for them.
func (t Table[C]) FindMisplaced(params map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(params)) {
		switch meant := spelling.Closest(name, t.names()); {
		case meant != "" && meant == name:
			i := slices.Index(t.names(), meant)
			return fmt.Errorf("livepool: Config.MySQL.Params has %s: set Config.%s, or have livepool.ParseDSN read the DSN", name, t[i].Field)
		case meant != "", strings.HasPrefix(spelling.Normalize(name), "pool"):
			return t.unknown(name)
		}
	}
	return nil
}

// Show writes all settings of c as a DSN would have them.
func (t Table[C]) Show(c *C) string {
	all := make([]string, len(t))
	for i, s := range t {
		all[i] = s.DSN + "=" + s.Show(c)
	}
	return strings.Join(all, " ")
}

func (t Table[C]) unknown(name string) error {
	closest := ""
	if p := spelling.Closest(name, t.names()); p != "" {
		closest = "did you mean " + p + "? "
	}
	return fmt.Errorf("livepool: unknown DSN parameter %s; %sknown are %s", name, closest, strings.Join(t.names(), ", "))
}

func (t Table[C]) names() []string {
	names := make([]string, len(t))
	for i, s := range t {
		names[i] = s.DSN
	}
	return names
}
