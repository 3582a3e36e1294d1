package livepoolotel

import (
	"reflect"
	"testing"
	"time"
)

// Each figure is read from its own field of Stats.
func TestFiguresAreThoseOfTheirFields(t *testing.T) {
	fields := map[string]string{
		"db.client.connection.count idle":       "Idle",
		"db.client.connection.count used":       "InUse",
		"db.client.connection.max ":             "MaxOpenConnections",
		"db.client.connection.pending_requests": "",
		"db.client.connection.timeouts ":        "SessionsTimedOut",
		"livepool.outage connections":           "UnreachableSince",
		"livepool.outage writes":                "WritesRefusedSince",
		"livepool.connect.failures ":            "ConnectFailed",
		"livepool.deaths ":                      "Deaths",
		"livepool.discards recycle":             "ClosedByRecycle",
		"livepool.discards age":                 "ClosedByAge",
		"livepool.discards silence":             "ClosedBySilence",
		"livepool.discards peek":                "ClosedByPeek",
		"livepool.discards ping":                "ClosedByPing",
		"livepool.discards driver":              "ClosedByDriver",
		"livepool.discards caller":              "ClosedByCaller",
		"livepool.kills killed":                 "Killed",
		"livepool.kills gone":                   "KillUnneeded",
		"livepool.kills unproved":               "KillUnproved",
		"livepool.kills failed":                 "KillFailed",
		"livepool.retries ":                     "Retried",
		"livepool.resends ":                     "Resent",
		"livepool.commits.unknown ":             "CommitsUnknown",
		"livepool.leaks ":                       "Leaks",
	}
	seen := 0
	for _, f := range figures {
		for _, v := range f.values {
			seen++
			name := f.name + " " + v.attr.Value.AsString()
			if f.name == "db.client.connection.pending_requests" {
				if v.of(&now{pending: 7}) != 7 {
					t.Errorf("%s is not what is pending", name)
				}
				continue
			}
			var n now
			field := reflect.ValueOf(&n.Stats).Elem().FieldByName(fields[name])
			want := int64(1)
			switch {
			case !field.IsValid():
				t.Fatalf("%s is not in the table, or Stats has no %s", name, fields[name])
			case field.CanInt():
				want = 7
				field.SetInt(want)
			default:
				field.Set(reflect.ValueOf(time.Now()))
			}
			if got := v.of(&n); got != want {
				t.Errorf("%s is %d where %s is %d", name, got, fields[name], want)
			}
		}
	}
	if seen != len(fields) {
		t.Errorf("%d figures, want %d", seen, len(fields))
	}
}
