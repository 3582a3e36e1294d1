package outage

import (
	"strings"
	"time"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// Shortage is what a server does not give.
type Shortage int

const (
	None Shortage = iota
	NoServer
	NoAnswer
	NoReplica
	NoPrimary
	NoRoom
	NoWrites
)

// shortageTexts describe each: what an error says, and the log when it begins and ends.
var shortageTexts = [...]struct{ is, begins, ends string }{
	NoServer: {"the server cannot be reached",
		"livepool: the server cannot be reached; sessions and statements wait while one prober dials for all of them",
		"livepool: the server can be reached again"},
	NoRoom: {"the server takes no more connections",
		"livepool: the server takes no more connections; those who need one wait while one prober asks for all of them",
		"livepool: the server takes connections again"},
	NoAnswer: {"the server accepts connections and says nothing",
		"livepool: the server accepts connections and says nothing; sessions and statements wait while one prober asks for all of them",
		"livepool: the server answers again"},
	NoPrimary: {"none of the hosts takes writes",
		"livepool: none of the hosts takes writes; sessions and statements wait while one prober asks all of them",
		"livepool: a host takes writes"},
	NoReplica: {"none of the hosts is a replica",
		"livepool: none of the hosts is a replica, and pool_target asks for one; sessions and statements wait while one prober asks all of them",
		"livepool: a host is a replica"},
	NoWrites: {"the server takes no writes",
		"livepool: the server takes no writes; the units that were refused wait while one prober asks for all of them, and reads go on",
		"livepool: the server takes writes again"},
}

// Error is returned to a caller that must not dial, because of an outage.
type Error struct {
	Shortage Shortage
	Cause    error         // of the last connect, or the refusal of a write
	Lasted   time.Duration // the outage, until now
	Waited   time.Duration // for the end of the outage, in vain; 0 if it was not waited for
}

func (e *Error) Error() string {
	text := "livepool: " + shortageTexts[e.Shortage].is
	if lasted := e.Lasted.Round(time.Millisecond); lasted > 0 {
		text += ", for " + lasted.String() + " now"
	}
	if waited := e.Waited.Round(time.Millisecond); waited > 0 { // a ping does not wait
		text += ", and was waited for in vain for " + waited.String() + " (pool_outage_wait)"
	}
	return text + ": " + strings.TrimPrefix(e.Cause.Error(), "livepool: ") // one prefix is enough
}
func (e *Error) Is(target error) bool { return target == mysqlerr.ErrUnreachable }
func (e *Error) Unwrap() error        { return e.Cause }

// Began is when the outage began and why; for nil, which is none, the zero time and otherwise.
func (e *Error) Began(otherwise string) (since time.Time, cause string) {
	if e == nil {
		return time.Time{}, otherwise
	}
	return time.Now().Add(-e.Lasted), e.Cause.Error()
}
