package soak

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
)

func rulesOf(vs []violation) (rules []string) {
	for _, v := range vs {
		rules = append(rules, v.Rule)
	}
	return rules
}

// givenUp is the error of a statement whose last connection was that old when it was given up.
func givenUp(age string) error {
	return fmt.Errorf("livepool: connection 7 to tcp(127.0.0.1:3306), %s old and 8ms after its last answer, was given up before the statement ran: %w", age, driver.ErrBadConn)
}

func TestJudgePlainFindsWhatIsPlanted(t *testing.T) {
	unknown := fmt.Errorf("told: %w", livepool.ErrCommitUnknown)
	unreachable := errors.New("livepool: connecting to tcp(db:3306) failed after 1ms: connection refused")
	duplicate, goingDown := &mysql.MySQLError{Number: 1062}, &mysql.MySQLError{Number: 1053}
	full := fmt.Errorf("connecting to db: %w", &mysql.MySQLError{Number: 1040})
	packet := errors.New("Error 1153: 2 MB are more than max_allowed_packet")
	statement := func(err error) *entry { return &entry{ids: []int64{1}, err: err, ended: time.Second} }
	tx := func(err error, atCommit bool) *entry {
		return &entry{ids: []int64{1, 2}, tx: true, err: err, atCommit: atCommit, ended: time.Second}
	}
	spoilt := func(e *entry, spoil func(e *entry)) *entry { spoil(e); return e }
	asFirst := func(e *entry) { e.fresh = true }
	asThinker := func(e *entry) { e.calm = true }
	asTooLarge := func(e *entry) { e.tooLarge = true }
	for _, tt := range []struct {
		name  string
		e     *entry
		rows  map[int64]int
		quiet bool // no fault that loses something struck
		want  []string
	}{
		{"acknowledged, and there", statement(nil), map[int64]int{1: 1}, true, nil},
		{"a duplicate, and not there", statement(duplicate), nil, true, nil},
		{"lost, and there", statement(mysql.ErrInvalidConn), map[int64]int{1: 1}, false, nil},
		{"the server went down, and it is there", statement(goingDown), map[int64]int{1: 1}, false, nil},
		{"its own context ended, and it is there", statement(context.DeadlineExceeded), map[int64]int{1: 1}, true, nil},
		{"a transaction, unknown and there", tx(unknown, true), map[int64]int{1: 1, 2: 1}, false, nil},
		{"a transaction that was lost before COMMIT", tx(mysql.ErrInvalidConn, false), nil, false, nil},
		{"a COMMIT by hand that was lost", spoilt(tx(mysql.ErrInvalidConn, true), func(e *entry) { e.spelled = true }), map[int64]int{1: 1, 2: 1}, false, nil},
		{"unreachable for long", spoilt(statement(unreachable), func(e *entry) { e.fresh, e.ended = true, 11*time.Second }), nil, false, nil},
		{"too large, and told so", spoilt(statement(packet), asTooLarge), nil, true, nil},
		{"a thinker in one run", spoilt(tx(nil, true), func(e *entry) { e.calm, e.runs = true, 1 }), map[int64]int{1: 1, 2: 1}, true, nil},

		{"acknowledged, and not there", statement(nil), nil, true, []string{rulePlainLost}},
		{"there twice", statement(nil), map[int64]int{1: 2}, true, []string{rulePlainTwice}},
		{"lost, and there twice", statement(mysql.ErrInvalidConn), map[int64]int{1: 2}, false, []string{rulePlainTwice}},
		{"a duplicate, and there", statement(duplicate), map[int64]int{1: 1}, true, []string{rulePlainFailed}},
		{"unreachable, and there", statement(unreachable), map[int64]int{1: 1}, false, []string{rulePlainFailed}},
		{"half of a transaction", tx(nil, true), map[int64]int{1: 1}, true, []string{rulePlainLost}},
		{"half of an unknown one", tx(unknown, true), map[int64]int{2: 1}, false, []string{rulePlainHalf}},
		{"a transaction that failed, and is there", tx(mysql.ErrInvalidConn, false), map[int64]int{1: 1, 2: 1}, false, []string{rulePlainFailed}},
		{"a COMMIT that was said to have failed, and is there", tx(sql.ErrTxDone, true), map[int64]int{1: 1, 2: 1}, false, []string{rulePlainFailed}},
		{"unreachable, and given up at once", spoilt(statement(unreachable), asFirst), nil, false, []string{rulePlainWaits}},
		{"stale connections, and given up", spoilt(statement(driver.ErrBadConn), asFirst), nil, false, []string{rulePlainWaits}},
		{"an old connection, and given up", spoilt(statement(givenUp("2s")), asFirst), nil, false, []string{rulePlainWaits}},
		{"a new connection that died, and no try left", spoilt(statement(givenUp("0s")), asFirst), nil, false, nil},
		{"a new connection that died without a fault", spoilt(statement(givenUp("0s")), asFirst), nil, true, []string{ruleCause}},
		{"full, and given up at once", spoilt(statement(full), asFirst), nil, false, []string{rulePlainWaits}},
		{"lost without a fault", statement(mysql.ErrInvalidConn), nil, true, []string{ruleCause}},
		{"unknown without a fault", tx(unknown, true), nil, true, []string{ruleCause}},
		{"a thinker whose connection is gone", spoilt(tx(mysql.ErrInvalidConn, false), asThinker), nil, true, []string{ruleThink}},
		{"a thinker that was run again", spoilt(tx(nil, true), func(e *entry) { e.calm, e.runs = true, 2 }), map[int64]int{1: 1, 2: 1}, true, []string{ruleThink}},
		{"too large, and acknowledged", spoilt(statement(nil), asTooLarge), map[int64]int{1: 1}, true, []string{ruleTooLarge}},
		{"too large, and there", spoilt(statement(packet), asTooLarge), map[int64]int{1: 1}, true, []string{rulePlainFailed}},
		{"too large, and told as a loss", spoilt(statement(mysql.ErrInvalidConn), asTooLarge), nil, true, []string{ruleTooLarge}},
		{"too large, and sent ten times", spoilt(statement(packet), func(e *entry) { e.tooLarge, e.runs = true, 10 }), nil, false, []string{ruleTooLarge}},
		{"a row of nobody", statement(nil), map[int64]int{1: 1, 9: 1}, true, []string{ruleStranger}},
	} {
		vs := judgePlain([]*entry{tt.e}, tt.rows, func(time.Duration, time.Duration) bool { return !tt.quiet })
		if got := rulesOf(vs); !slices.Equal(got, tt.want) {
			t.Errorf("%s: found %q, want %q", tt.name, vs, tt.want)
		}
	}
}

func TestJudgeCausesFindsWhatIsPlanted(t *testing.T) {
	unknown := fmt.Errorf("told: %w", livepool.ErrCommitUnknown)
	readOnlyServer, fullServer := &mysql.MySQLError{Number: 1290}, &mysql.MySQLError{Number: 1040}
	for _, tt := range []struct {
		name  string
		err   error
		spoil func(d *delivery)
		lossy bool
		want  []string
	}{
		{"nil", nil, nil, false, nil},
		{"unknown, with a fault", unknown, nil, true, nil},
		{"unknown, and its context ended", unknown, func(d *delivery) { d.ends = time.Second }, false, nil},
		{"read-only for as long as it may take", readOnlyServer, func(d *delivery) { d.ended = d.started + patience }, false, nil},
		{"its own error", errOwn, nil, false, nil},
		{"unknown, without a fault", unknown, nil, false, []string{ruleCause}},
		{"read-only, and given up", readOnlyServer, nil, false, []string{ruleWaits}},
		{"full, and given up", fullServer, nil, true, []string{ruleWaits}},
	} {
		d := told(1, 0, 1, plain, tt.err)
		if tt.spoil != nil {
			tt.spoil(d)
		}
		vs := judgeCauses([]*delivery{d}, func(time.Duration, time.Duration) bool { return tt.lossy })
		if got := rulesOf(vs); !slices.Equal(got, tt.want) {
			t.Errorf("%s: found %q, want %q", tt.name, vs, tt.want)
		}
	}
}

// A fault is to blame while it lasts and for a while after, if it is one of those.
func TestLossy(t *testing.T) {
	n := &nemesis{events: []event{{label: "KILL", from: 10 * time.Second, to: 11 * time.Second, lossy: true}, {label: "rows locked", from: 30 * time.Second, to: 31 * time.Second}}}
	for _, tt := range []struct {
		from, to time.Duration
		want     bool
	}{{5, 9, false}, {9, 12, true}, {10, 11, true}, {13, 14, true}, {20, 21, false}, {29, 32, false}} {
		if got := n.lossy(tt.from*time.Second, tt.to*time.Second); got != tt.want {
			t.Errorf("from %d s to %d s: %t", tt.from, tt.to, got)
		}
	}
}

func TestSightFindsWhatIsPlanted(t *testing.T) {
	if text := clean.differs(); text != "" {
		t.Error(text)
	}
	for name, spoil := range map[string]func(s *sight){
		"a variable":        func(s *sight) { s.variable = sql.NullString{String: "tag", Valid: true} },
		"sql_mode":          func(s *sight) { s.mode = false },
		"another schema":    func(s *sight) { s.schema.String = otherSchema },
		"a lock":            func(s *sight) { s.lock = true },
		"a temporary table": func(s *sight) { s.table = "tag" },
		"no autocommit":     func(s *sight) { s.auto = 0 },
	} {
		s := clean
		if text := s.ownLacks(name, "tag"); (text == "") != (name == "a lock") {
			t.Errorf("%s was not left, and %q is told", name, text)
		}
		if spoil(&s); s.differs() == "" {
			t.Errorf("%s is not seen", name)
		}
		if text := s.ownLacks(name, "tag"); text != "" {
			t.Errorf("%s was left, and %q is told", name, text)
		}
	}
}

// Each state that is left is seen on a real connection of plain database/sql, by
// those who left it and by those who come next; and what it leads astray is found.
func TestLeftStateIsSeen(t *testing.T) {
	g := testGround(t)
	l, err := g.addLane("planted", server.AppUser, server.AppPassword, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range leftStates {
		db, err := sql.Open("mysql", l.mysql().FormatDSN())
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		if _, err := db.Exec(s.statement(l.tables, "tag")); err != nil {
			t.Fatal(err)
		}
		seen, err := look(t.Context(), db, l.tables)
		if err != nil {
			t.Fatal(err)
		}
		if text := seen.ownLacks(s.name, "tag"); text != "" {
			t.Error(text)
		}
		if unseen := s.name == "an open transaction"; (seen.differs() == "") != unseen {
			t.Errorf("%s: %q", s.name, seen.differs())
		}
		if s.name == "another schema" {
			_, err = db.Exec("INSERT INTO " + l.tables.plain + " (id) VALUES (7)")
		}
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	b, vs, err := g.read(l.tables)
	if err != nil || vs != nil {
		t.Fatal(vs, err)
	}
	if want := []string{"1 rows in " + otherSchema + "." + l.tables.plain}; !slices.Equal(b.strayed, want) {
		t.Errorf("found %q, want %q", b.strayed, want)
	}
}
