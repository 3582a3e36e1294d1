package livepoolprom

import (
	"database/sql"
	"maps"
	"reflect"
	"testing"
	"time"

	"github.com/livepool/livepool"
)

// exportedAs says under which name each field of livepool.Stats is exported.
var exportedAs = map[string]string{
	"MaxOpenConnections": "connections_max",
	"InUse":              "connections/in_use",
	"Idle":               "connections/idle",
	"WaitCount":          "waits_total/connection",
	"WaitDuration":       "wait_seconds_total/connection",
	"MaxIdleClosed":      "connections_closed_total/max_idle",
	"MaxIdleTimeClosed":  "connections_closed_total/max_idle_time",
	"MaxLifetimeClosed":  "connections_closed_total/max_lifetime",
	"Opened":             "connections_opened_total",
	"Reused":             "connections_reused_total",
	"ConnectFailed":      "connect_failures_total",
	"Outages":            "outages_total",
	"Pinged":             "pings_total",
	"KeptAlive":          "keepalive_pings_total",
	"Deaths":             "deaths_total",
	"Swept":              "swept_total",
	"Stalled":            "stalled_total",
	"StallChecks":        "stall_checks_total",
	"ClosedByRecycle":    "connections_closed_total/recycle",
	"ClosedByAge":        "connections_closed_total/age",
	"ClosedBySilence":    "connections_closed_total/silence",
	"ClosedByPeek":       "connections_closed_total/peek",
	"ClosedByPing":       "connections_closed_total/ping",
	"ClosedByDriver":     "connections_closed_total/driver",
	"ClosedByCaller":     "connections_closed_total/caller",
	"Killed":             "kills_total/killed",
	"KillUnneeded":       "kills_total/gone",
	"KillUnproved":       "kills_total/unproved",
	"KillFailed":         "kills_total/failed",
	"SessionsWaited":     "waits_total/place",
	"SessionWait":        "wait_seconds_total/place",
	"SessionsTimedOut":   "wait_timeouts_total",
	"Retried":            "retries_total",
	"Poisoned":           "poisoned_total",
	"CommitsUnknown":     "commits_unknown_total",
	"CommitsResolved":    "commits_resolved_total",
	"ServedByReplica":    "served_by_replica_total",
	"Resent":             "resends_total",
	"Leaks":              "leaks_total",
	"UnreachableSince":   "outage/connections",
	"WritesRefusedSince": "outage/writes",
	"OpenConnections":    "", // the sum of Idle and InUse
	"OutageCause":        "", // a text
}

// Each field of Stats is exported once and by its own value, a duration as seconds.
func TestEachFieldOfStatsIsExportedOnce(t *testing.T) {
	var told []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[livepool.Stats]()) {
		if field.Type == reflect.TypeFor[sql.DBStats]() {
			continue
		}
		var s livepool.Stats
		want := map[string]float64{}
		name, known := exportedAs[field.Name]
		switch v := reflect.ValueOf(&s).Elem().FieldByIndex(field.Index); v.Interface().(type) {
		case time.Time:
			v.Set(reflect.ValueOf(time.Now()))
			want[name] = 1
		case time.Duration:
			v.SetInt(int64(1500 * time.Millisecond))
			want[name] = 1.5
		case string:
			v.SetString("why")
		default:
			v.SetInt(7)
			want[name] = 7
		}
		delete(want, "")
		got := map[string]float64{}
		for _, f := range families {
			for _, series := range f.series {
				name := f.name
				if f.label != "" {
					name += "/" + series.value
				}
				if n := series.read(&s); n != 0 {
					got[name] = n
				}
			}
		}
		if !known || !maps.Equal(got, want) {
			t.Errorf("%s is exported as %v, want %v", field.Name, got, want)
		}
		told = append(told, field.Name)
	}
	if len(told) != len(exportedAs) {
		t.Errorf("there are the fields %v", told)
	}
}
