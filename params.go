// params.go is the table of settings: for each its names, what it takes, and how it
// is read, checked and shown.

package livepool

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// param is one setting: its names, what it takes, and how it is read and
// checked. The table of them is the one place that knows the DSN's words.
type param struct {
	dsn   string
	field string
	takes string
	set   func(c *Config, value string) bool
	ok    func(c *Config) bool
	show  func(c *Config) string
}

// maxConns is the most connections a server can be set to take (max_connections).
const maxConns = 100000

var params = []param{
	intParam("pool_size", "PoolSize", 0, maxConns, func(c *Config) *int { return &c.PoolSize }),
	intParam("pool_max_overflow", "MaxOverflow", -1, maxConns, func(c *Config) *int { return &c.MaxOverflow }),
	durationParam("pool_timeout", "PoolTimeout", false, func(c *Config) *time.Duration { return &c.PoolTimeout }),
	intParam("pool_min_idle", "MinIdle", 0, maxConns, func(c *Config) *int { return &c.MinIdle }),
	durationParam("pool_idle_timeout", "IdleTimeout", false, func(c *Config) *time.Duration { return &c.IdleTimeout }),
	recycleParam,
	jitterParam,
	wordParam("pool_pre_ping", "PrePing", prePingNames, func(c *Config) *PrePing { return &c.PrePing }),
	durationParam("pool_ping_after", "PingAfter", false, func(c *Config) *time.Duration { return &c.PingAfter }),
	durationParam("pool_ping_timeout", "PingTimeout", true, func(c *Config) *time.Duration { return &c.PingTimeout }),
	durationParam("pool_keepalive", "KeepAlive", false, func(c *Config) *time.Duration { return &c.KeepAlive }),
	durationParam("pool_hold_limit", "HoldLimit", false, func(c *Config) *time.Duration { return &c.HoldLimit }),
	durationParam("pool_connect_timeout", "ConnectTimeout", true, func(c *Config) *time.Duration { return &c.ConnectTimeout }),
	intParam("pool_connect_limit", "ConnectLimit", 1, maxConns, func(c *Config) *int { return &c.ConnectLimit }),
	durationParam("pool_outage_wait", "OutageWait", false, func(c *Config) *time.Duration { return &c.OutageWait }),
	durationParam("pool_commit_timeout", "CommitTimeout", true, func(c *Config) *time.Duration { return &c.CommitTimeout }),
	wordParam("pool_kill_abandoned", "KillAbandoned", boolNames, func(c *Config) *bool { return &c.KillAbandoned }),
	wordParam("pool_beacon", "Beacon", beaconNames, func(c *Config) *Beacon { return &c.Beacon }),
	durationParam("pool_stall_after", "StallAfter", false, func(c *Config) *time.Duration { return &c.StallAfter }),
	durationParam("pool_leak_after", "LeakAfter", false, func(c *Config) *time.Duration { return &c.LeakAfter }),
	intParam("pool_max_attempts", "MaxAttempts", 1, math.MaxInt32, func(c *Config) *int { return &c.MaxAttempts }),
	durationParam("pool_max_elapsed", "MaxElapsed", false, func(c *Config) *time.Duration { return &c.MaxElapsed }),
	tableParam,
}

func intParam(dsn, field string, low, high int, at func(*Config) *int) param {
	return param{
		dsn: dsn, field: field,
		takes: fmt.Sprintf("a whole number from %d to %d", low, high),
		set: func(c *Config, value string) (ok bool) {
			n, err := strconv.Atoi(value)
			*at(c) = n
			return err == nil
		},
		ok:   func(c *Config) bool { return *at(c) >= low && *at(c) <= high },
		show: func(c *Config) string { return strconv.Itoa(*at(c)) },
	}
}

func durationParam(dsn, field string, positive bool, at func(*Config) *time.Duration) param {
	takes := "a duration of 0 or more, such as 500ms, 1h or 3600 (seconds)"
	if positive {
		takes = "a duration above 0, such as 500ms, 5s or 10 (seconds)"
	}
	return param{
		dsn: dsn, field: field, takes: takes,
		set: func(c *Config, value string) bool {
			d, err := parseDuration(value)
			*at(c) = d
			return err == nil
		},
		ok:   func(c *Config) bool { return *at(c) > 0 || *at(c) == 0 && !positive },
		show: func(c *Config) string { return at(c).String() },
	}
}

// recycleParam takes SQLAlchemy's -1, too, for no limit.
var recycleParam = func() param {
	p := durationParam("pool_recycle", "Recycle", false, func(c *Config) *time.Duration { return &c.Recycle })
	set := p.set
	p.set = func(c *Config, value string) bool {
		if value == "-1" {
			value = "0"
		}
		return set(c, value)
	}
	return p
}()

// parseDuration reads a Go duration or plain seconds.
func parseDuration(value string) (time.Duration, error) {
	if strings.Trim(value, "0123456789.+-") == "" {
		value += "s"
	}
	return time.ParseDuration(value)
}

func wordParam[T comparable](dsn, field string, words []word[T], at func(*Config) *T) param {
	names := make([]string, len(words))
	for i, w := range words {
		names[i] = w.name
	}
	return param{
		dsn: dsn, field: field,
		takes: "one of " + strings.Join(names, ", "),
		set: func(c *Config, value string) bool {
			for _, w := range words {
				if strings.EqualFold(w.name, value) { // True, as in Python, TRUE, as the driver takes it
					*at(c) = w.value
					return true
				}
			}
			return false
		},
		ok: func(c *Config) bool {
			return slices.ContainsFunc(words, func(w word[T]) bool { return w.value == *at(c) })
		},
		show: func(c *Config) string { return fmt.Sprint(*at(c)) },
	}
}

var boolNames = []word[bool]{{"true", true}, {"false", false}, {"1", true}, {"0", false}, {"on", true}, {"off", false}}

var jitterParam = param{
	dsn: "pool_recycle_jitter", field: "RecycleJitter",
	takes: "a number from 0 to 1: the share of Recycle by which an age limit may be cut",
	set: func(c *Config, value string) (ok bool) {
		var err error
		c.RecycleJitter, err = strconv.ParseFloat(value, 64)
		return err == nil
	},
	ok:   func(c *Config) bool { return c.RecycleJitter >= 0 && c.RecycleJitter <= 1 },
	show: func(c *Config) string { return strconv.FormatFloat(c.RecycleJitter, 'g', -1, 64) },
}

// tableName keeps the name free of anything that would need quoting, because
// it becomes part of statements.
var tableName = regexp.MustCompile(`^[A-Za-z0-9_$]{1,64}(\.[A-Za-z0-9_$]{1,64})?$`)

var tableParam = param{
	dsn: "pool_commit_table", field: "CommitTable",
	takes: "a table name of letters, digits, _ and $, or schema.table",
	set:   func(c *Config, value string) bool { c.CommitTable = value; return true },
	ok:    func(c *Config) bool { return tableName.MatchString(c.CommitTable) },
	show:  func(c *Config) string { return strconv.Quote(c.CommitTable) },
}
