// Package spelling finds the setting that was meant by a misspelt name, or by the name
// that another pool has for it. It knows names only, not what they are set to.
package spelling

import (
	"net/url"
	"strings"
	"unicode"
)

// Normalize is what is left of a name that is written in another way: lower case,
// without underscores and the like.
func Normalize(name string) string {
	if plain, err := url.QueryUnescape(name); err == nil {
		name = plain
	}
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r == '.' || r == ' ' {
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}

// Closest returns the parameter of params that was meant by name, "" if none is like it.
func Closest(name string, params []string) string {
	squashed := Normalize(name)
	for _, p := range params {
		if is := Normalize(p); squashed == is || squashed == strings.TrimPrefix(is, "pool") {
			return p
		}
	}
	if p, ok := otherPoolsNames[squashed]; ok {
		return p
	}
	for _, p := range params {
		if strings.HasPrefix(squashed, "pool") && isOneEdit(squashed, Normalize(p)) {
			return p
		}
	}
	return ""
}

// isOneEdit says whether two names differ by one character that was added, left
// out, or mistaken.
func isOneEdit(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) == len(b) {
		return i < len(a) && a[i+1:] == b[i+1:]
	}
	return a[i:] == b[i+1:]
}

// otherPoolsNames are the words of database/sql, SQLAlchemy, HikariCP and pgxpool
// for what livepool has, squashed.
var otherPoolsNames = map[string]string{
	"maxopenconns": "pool_size", "setmaxopenconns": "pool_size", "maxopenconnections": "pool_size",
	"maxidleconns": "pool_size", "setmaxidleconns": "pool_size", "maxidleconnections": "pool_size",
	"maximumpoolsize": "pool_size", "maxpoolsize": "pool_size", "maxconns": "pool_size", "poolmaxconns": "pool_size",
	"connmaxlifetime": "pool_recycle", "setconnmaxlifetime": "pool_recycle", "maxlifetime": "pool_recycle",
	"maxconnlifetime": "pool_recycle", "poolmaxconnlifetime": "pool_recycle",
	"maxconnlifetimejitter": "pool_recycle_jitter", "poolmaxconnlifetimejitter": "pool_recycle_jitter",
	"connmaxidletime": "pool_idle_timeout", "setconnmaxidletime": "pool_idle_timeout", "maxidletime": "pool_idle_timeout",
	"maxconnidletime": "pool_idle_timeout", "poolmaxconnidletime": "pool_idle_timeout",
	"minimumidle": "pool_min_idle", "minidleconns": "pool_min_idle", "minconns": "pool_min_idle",
	"poolminconns": "pool_min_idle", "poolminidleconns": "pool_min_idle",
	"connectiontimeout": "pool_timeout", "acquiretimeout": "pool_timeout",
	"keepalivetime": "pool_keepalive", "healthcheckperiod": "pool_keepalive", "poolhealthcheckperiod": "pool_keepalive",
	"leakdetectionthreshold": "pool_leak_after", "validationtimeout": "pool_ping_timeout",
	"testonborrow": "pool_pre_ping", "maxretries": "pool_max_attempts",
}
