// plaincheck.go holds what plain statements and transactions were told against
// their rows. It asks nobody.

package soak

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
)

// The promises about what is outside units.
const (
	rulePlainTwice  = "no plain statement runs twice"
	rulePlainLost   = "what a plain statement or transaction was acknowledged for is there"
	rulePlainFailed = "what a plain statement or transaction was refused is there only if it may have run"
	rulePlainHalf   = "a plain transaction is applied whole or not at all"
	rulePlainWaits  = "a plain statement waits for a server that cannot be reached"
	ruleThink       = "a connection lives while who holds it thinks, and nothing is run again for it"
	ruleTooLarge    = "a statement above max_allowed_packet is told as such, and not sent again and again"
	ruleCause       = "nothing is lost or unknown without a fault that loses something"
)

// outageWait is for how long a plain statement waits at least: the pool's
// OutageWait, less what its last try may take.
const outageWait = 8 * time.Second

// sends is how often a statement that ends its own connection may be sent.
const sends = 2

// judgePlain holds the entries against how often each row is there. lossy says
// whether a fault that loses something struck between two moments.
func judgePlain(all []*entry, rows map[int64]int, lossy func(from, to time.Duration) bool) (vs []violation) {
	known := map[int64]bool{}
	for _, e := range all {
		for _, id := range e.ids {
			known[id] = true
		}
		vs = append(vs, e.judge(rows, lossy)...)
	}
	for id, n := range rows {
		if !known[id] {
			vs = append(vs, violation{Rule: ruleStranger, Text: fmt.Sprintf("%d plain rows %d", n, id)})
		}
	}
	return vs
}

func (e *entry) judge(rows map[int64]int, lossy func(from, to time.Duration) bool) (vs []violation) {
	find := func(rule, format string, args ...any) {
		vs = append(vs, violation{Rule: rule, Text: fmt.Sprintf("%s: %s: %v", e, fmt.Sprintf(format, args...), e.err)})
	}
	there := 0
	for _, id := range e.ids {
		if rows[id] > 1 {
			find(rulePlainTwice, "row %d is there %d times", id, rows[id])
		}
		there += min(rows[id], 1)
	}
	switch {
	case e.err == nil && there < len(e.ids):
		find(rulePlainLost, "%d of %d rows are there", there, len(e.ids))
	case e.tx && there > 0 && there < len(e.ids):
		find(rulePlainHalf, "%d of %d rows are there", there, len(e.ids))
	case e.err != nil && there > 0 && !e.mayHaveRun():
		find(rulePlainFailed, "%d rows are there", there)
	}
	calm := !lossy(e.started, e.ended)
	switch {
	case e.tooLarge:
		if text := e.wrongOfTooLarge(calm); text != "" {
			find(ruleTooLarge, "%s", text)
		}
	case e.calm && (e.err != nil || e.runs > 1):
		find(ruleThink, "%d runs", e.runs)
	case e.fresh && unreached(e.err) && !e.metDeathOfNewConnection() && e.ended-e.started < outageWait:
		find(rulePlainWaits, "it gave up after %s", e.ended-e.started)
	case calm && lost(e.err):
		find(ruleCause, "after %s", e.ended-e.started)
	}
	return vs
}

// metDeathOfNewConnection says whether the connection that was given up last was opened for
// this statement, and died under it before it ran: a server that was reached, and no stale
// connection. database/sql has no more tries than that.
func (e *entry) metDeathOfNewConnection() bool {
	m := connectionAge.FindStringSubmatch(e.err.Error())
	if m == nil || !errors.Is(e.err, driver.ErrBadConn) {
		return false
	}
	age, err := time.ParseDuration(m[1])
	return err == nil && age <= e.ended-e.started
}

var connectionAge = regexp.MustCompile(`^livepool: connection \d+ to \S+, (\S+) old and `)

// mayHaveRun: its error leaves open whether it is there.
func (e *entry) mayHaveRun() bool {
	var my *mysql.MySQLError
	switch {
	case e.tx:
		return e.atCommit && (errors.Is(e.err, livepool.ErrCommitUnknown) || e.spelled && lost(e.err))
	case e.tooLarge, unreached(e.err):
		return false
	case errors.As(e.err, &my):
		return livepool.Classify(e.err)&livepool.CommitUnknown != 0
	}
	return true
}

func (e *entry) wrongOfTooLarge(calm bool) string {
	switch {
	case e.err == nil:
		return "it was acknowledged"
	case e.runs > sends:
		return fmt.Sprintf("it was sent %d times", e.runs)
	case calm && !strings.Contains(e.err.Error(), "max_allowed_packet"):
		return "the setting is not named"
	}
	return ""
}

// unreached: there was no server to send anything to.
func unreached(err error) bool {
	if err == nil || ownEnd(err) {
		return false
	}
	var my *mysql.MySQLError
	if errors.As(err, &my) {
		const tooManyConnections = 1040
		return my.Number == tooManyConnections
	}
	return errors.Is(err, driver.ErrBadConn) || strings.Contains(err.Error(), "connecting to") || strings.Contains(err.Error(), "cannot be reached")
}

// lost: the connection went away, or the answer with it.
func lost(err error) bool {
	if err == nil || ownEnd(err) {
		return false
	}
	if errors.As(err, new(*mysql.MySQLError)) && !errors.Is(err, livepool.ErrCommitUnknown) {
		return livepool.Classify(err)&livepool.ConnDead != 0
	}
	return errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, livepool.ErrCommitUnknown)
}

// ownEnd: its own context has ended.
func ownEnd(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}
