// hosterror.go says why none of several hosts can be used, and what that means for the pool.

package connector

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
)

// isAnswerOfHost says whether a host has answered, though its failure is err.
func isAnswerOfHost(err error) bool {
	return driverconn.IsAnswer(err) || errors.As(err, new(roleError))
}

// errHostSilent is the failure of a host that was not waited for any longer.
var errHostSilent = errors.New("no answer")

// roleError is the failure of a host that is there, and not what is wanted.
type roleError struct {
	why      string
	readOnly bool
	asked    time.Duration // when it was asked
}

func (e roleError) Error() string { return e.why }

func newRoleError(takesWrites bool, asked time.Duration) roleError {
	if takesWrites {
		return roleError{why: "it takes writes (read_only is off), and a replica is wanted (pool_target)"}
	}
	return roleError{"it takes no writes (read_only)", true, asked}
}

// Why a host is not used although it takes writes.
var (
	errStays    = errors.New("it takes writes, and so does the one that the pool stays with")
	errChanging = errors.New("it took writes, and another one may have taken over since")
)

// hostsError is the failure of all hosts.
type hostsError struct {
	shortage outage.Shortage
	cause    error // of the host that decides what it is
	text     string
}

func (e *hostsError) Error() string { return e.text }
func (e *hostsError) Unwrap() error { return e.cause }

// newHostsError says what each host said. What decides is the failure that comes nearest to a
// connection: a host that is full, before one with another role, before one that says nothing.
func (ctr *Connector) newHostsError(failed []hosts.Result[candidate]) error {
	e := &hostsError{}
	var texts []string
	for i, f := range failed {
		if f.Err == nil { // it was passed over
			f.Err = errHostSilent
		}
		if short := ctr.shortageOfHost(f.Err); i == 0 || short > e.shortage {
			e.shortage, e.cause = short, f.Err
		}
		texts = append(texts, ctr.hosts()[f.Host].addr+": "+f.Err.Error())
	}
	present := ctr.presentHosts()
	for _, h := range present {
		if slices.ContainsFunc(failed, func(f hosts.Result[candidate]) bool { return f.Host == h.index }) {
			continue
		}
		if !ctr.hostSet.IsLeftOut(h.index, ctr.clock.Now()) {
			texts = append(texts, h.addr+": not tried")
			continue
		}
		texts = append(texts, h.addr+": no answer a moment ago, and not tried again yet")
		if e.shortage < outage.NoServer {
			e.shortage, e.cause = outage.NoServer, errHostSilent
		}
	}
	if e.text = strings.Join(texts, "; "); len(present) > 1 {
		e.text = fmt.Sprintf("none of %d hosts can be used: %s", len(present), e.text)
	}
	return e
}

// shortageOfHost is why one of several hosts could not be used.
func (ctr *Connector) shortageOfHost(err error) outage.Shortage {
	switch {
	case err == errChanging, errors.As(err, new(roleError)) && ctr.Cfg.Target == hosts.Primary:
		return outage.NoPrimary
	case errors.As(err, new(roleError)):
		return outage.NoReplica
	case err == errHostSilent:
		return outage.NoServer
	case mysqlerr.IsMisconfigured(err):
		return outage.None
	}
	return ctr.shortageOfCause(err)
}
