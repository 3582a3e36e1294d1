// host.go is one of the servers that a pool connects to, and how a connection is opened where
// there are several: internal/hosts says which to try, each is asked for its role.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
)

// host is one address, and what belongs to it alone. The first four fields do not change.
type host struct {
	index      int
	addr       string           // for errors and logs
	connector  driver.Connector // for the pool's connections
	side       driver.Connector // for side connections, which may send several statements in one request
	generation atomic.Uint64    // one more each time that all its connections are retired
	reaper     proclist.Reaper
	stalls     proclist.Stalls
	askAgainAt atomic.Int64 // when it may be asked again whether it is there; checkSilence
	isBehind   atomic.Bool  // it lagged, when it was last asked; checkLag
	// fastestLogin is how long the fastest login took, 0 before the first; in ns.
	fastestLogin atomic.Int64
}

// addrOf is the address of a connection, that of the pool where it has none.
func (ctr *Connector) addrOf(l *link) string {
	if l.host == nil {
		return ctr.addr
	}
	return l.host.addr
}

func (c *conn) addr() string { return c.ctr.addrOf(&c.link) }

// makeHosts makes the hosts of the settings; my has all that they have in common.
func (ctr *Connector) makeHosts(my *mysql.Config) error {
	addrs := ctr.Cfg.Addrs
	if len(addrs) == 0 {
		addrs = []string{my.Addr}
	}
	for i, addr := range addrs {
		own := my.Clone()
		own.Addr = addr
		if own.TLS != nil && len(addrs) > 1 && own.TLS.ServerName == hostName(my.Addr) {
			own.TLS.ServerName = "" // the driver has set it to the first host's; it sets it to this one's
		}
		h := &host{index: i, addr: address(own)}
		var err error
		if h.connector, err = mysql.NewConnector(own); err != nil {
			return err
		}
		several := own.Clone()
		several.MultiStatements = true
		if h.side, err = mysql.NewConnector(several); err != nil {
			return err
		}
		ctr.hosts = append(ctr.hosts, h)
	}
	ctr.addr = ctr.hosts[0].addr
	if len(addrs) > 1 {
		all := my.Clone()
		all.Addr = strings.Join(addrs, ",")
		ctr.addr = address(all)
	}
	if len(addrs) > 1 || ctr.Cfg.Target != hosts.Primary {
		ctr.hostSet = hosts.New(len(addrs), ctr.Cfg.Target)
	}
	return nil
}

// hostName is the name in an address, by which a certificate is checked.
func hostName(addr string) string {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return name
}

// mainHost is the primary as far as it is known, otherwise the first host.
func (ctr *Connector) mainHost() *host {
	if ctr.hostSet != nil {
		if i, known := ctr.hostSet.Primary(); known {
			return ctr.hosts[i]
		}
	}
	return ctr.hosts[0]
}

// isLeft says whether the pool has left a host for another one that takes writes; changed is
// closed when that may be different. Of replicas another one is used at any time, and of any
// hosts another one than that which has just fallen silent.
func (ctr *Connector) isLeft(index int) (left bool, changed <-chan struct{}) {
	switch {
	case ctr.hostSet == nil:
		return false, nil
	case ctr.Cfg.Target == hosts.Any:
		return ctr.hostSet.IsLeftOut(index, ctr.clock.Now()), nil
	case ctr.Cfg.Target != hosts.Primary:
		return true, nil
	}
	primary, changed := ctr.hostSet.Watch()
	return primary >= 0 && primary != index, changed
}

// followsPrimary says whether the pool looks for the host that takes writes.
func (ctr *Connector) followsPrimary() bool {
	return ctr.hostSet != nil && ctr.Cfg.Target == hosts.Primary
}

// isPrimary says whether a host is the one of several to which the pool connects.
func (ctr *Connector) isPrimary(h *host) bool {
	if !ctr.followsPrimary() {
		return false
	}
	i, known := ctr.hostSet.Primary()
	return known && i == h.index
}

// retire has the connections to a host closed that exist now: idle ones soon, those in use
// when they are returned.
func (ctr *Connector) retire(h *host) {
	h.generation.Add(1)
	ctr.maintainer.wake()
}

// reached records that a connection was opened, which ends an outage of connections. One to a
// host that was demoted meanwhile does not.
func (ctr *Connector) reached(l *link) {
	switch {
	case ctr.hostSet == nil:
		ctr.Outage.Connected()
	case l.generation == l.host.generation.Load():
		ctr.Outage.Connected(slog.String("host", l.host.addr))
	}
}

// wanted are the roles that a pool on replicas, or on any host, wants, the better one first.
func (ctr *Connector) wanted() []func(takesWrites bool) bool {
	replica := func(taken bool) bool { return !taken }
	switch ctr.Cfg.Target {
	case hosts.Replica:
		return []func(bool) bool{replica}
	case hosts.PreferReplica:
		return []func(bool) bool{replica, isWritable}
	}
	return []func(bool) bool{func(bool) bool { return true }}
}

// loginToAny makes a connection to one of several hosts, whose role is the wanted one, and
// logs in.
// logs in. It has a little less than ConnectTimeout, so that the error of all hosts tells more
// than that the time is up.
func (ctr *Connector) loginToAny(caller context.Context) (link, error) {
	ctx, cancel := context.WithTimeout(caller, ctr.Cfg.ConnectTimeout*9/10)
	defer cancel()
	login := ctr.loginToWanted
	if ctr.followsPrimary() {
		login = ctr.loginToPrimary
	}
	won, failed := login(ctx)
	switch {
	case won != nil:
		return won.link, nil
	case caller.Err() != nil:
		return link{}, caller.Err()
	}
	return link{}, ctr.newHostsError(failed)
}

// loginToWanted is loginToAny for a pool on replicas or on any host. What the hosts say that are
// no second choice either is what they said at first.
func (ctr *Connector) loginToWanted(ctx context.Context) (*candidate, []hosts.Result[candidate]) {
	var failed []hosts.Result[candidate]
	for i, isRight := range ctr.wanted() {
		won, failures := ctr.raceHosts(ctx, ctr.hostSet.Order(ctr.clock.Now()), isRight)
		if won != nil {
			won.Value.isStopgap = i > 0
			return &won.Value, nil
		}
		if i == 0 {
			failed = failures
		}
	}
	return nil, failed
}

// maxRaces is how often the hosts are tried if the primary changes meanwhile.
const maxRaces = 3

// loginToPrimary is loginToAny for the host that takes writes. Where several do, as in a
// cluster, the pool stays with the one that it has, unless that has failed in the same race:
// one that is full, or refuses the login, is there.
func (ctr *Connector) loginToPrimary(ctx context.Context) (*candidate, []hosts.Result[candidate]) {
	var failed []hosts.Result[candidate]
	for range maxRaces {
		before, _ := ctr.hostSet.Watch()
		won, failures := ctr.raceHosts(ctx, ctr.hostSet.Order(ctr.clock.Now()), isWritable)
		failed = failures
		if won == nil {
			break
		}
		primary, _ := ctr.hostSet.Watch()
		isThere := primary != won.Host && slices.ContainsFunc(failed, func(f hosts.Result[candidate]) bool { return f.Host == primary && ctr.isThereAfter(f.Err) })
		mayBe := primary < 0 || primary == won.Host || primary == before && !isThere
		if mayBe && ctr.noteHostWon(&won.Value, primary) {
			return &won.Value, nil
		}
		won.Value.close()
		if won.Err = errChanging; isThere {
			won.Err = errStays
		}
		if failed = append(failed, *won); isThere {
			break
		}
	}
	return nil, failed
}

func isWritable(taken bool) bool { return taken }

// Why a host is not used although it takes writes.
var (
	errStays    = errors.New("it takes writes, and so does the one that the pool stays with")
	errChanging = errors.New("it took writes, and another one may have taken over since")
)

// isThereAfter says whether a host that has failed with err is what it was: it is full, or
// refuses the login.
func (ctr *Connector) isThereAfter(err error) bool {
	if err == nil || !driverconn.IsAnswer(err) { // nil: it was passed over
		return false
	}
	short := ctr.shortageOfHost(err)
	return short == outage.NoRoom || short == outage.None
}

// raceHosts tries these hosts until one is right, and notes what the failures say. One that has
// greeted is not silent, and neither is one whose logins always take long.
func (ctr *Connector) raceHosts(ctx context.Context, order []int, isRight func(takesWrites bool) bool) (*hosts.Result[candidate], []hosts.Result[candidate]) {
	wires := make([]atomic.Pointer[wire.Conn], len(ctr.hosts))
	try := func(ctx context.Context, i int, answered func()) (candidate, error) {
		return ctr.tryHost(ctx, ctr.hosts[i], &wires[i], isRight, answered)
	}
	headStart := func(i int) time.Duration { return min(ctr.hostSet.HeadStart(i), ctr.Cfg.ConnectTimeout/4) }
	patience := func(i int) time.Duration {
		if wires[i].Load().HasSpoken() {
			return ctr.Cfg.ConnectTimeout
		}
		return ctr.hosts[i].silentLimit(ctr.Cfg.ConnectTimeout)
	}
	start := ctr.clock.Now()
	won, failed, losers := hosts.Race(ctx, order, headStart, patience, try, func(c candidate) { c.close() })
	if !ctr.startAttempt(losers) {
		go losers()
	}
	if won != nil || ctx.Err() == nil || ctx.Err() == context.DeadlineExceeded && ctr.clock.Now()-start >= hosts.Silence { // else nobody has waited long enough to know
		for _, f := range failed {
			ctr.noteHostFailure(ctr.hosts[f.Host], f.Err, f.Silent)
		}
	}
	return won, failed
}

// isAnswerOfHost says whether a host has answered, though its failure is err.
func isAnswerOfHost(err error) bool {
	return driverconn.IsAnswer(err) || errors.As(err, new(roleError))
}

// candidate is a connection to a host whose role is right.
type candidate struct {
	link
	asked time.Duration // when it was asked for its role
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

// untilNeeded is the context of a login in a race. It outlives that where the host has greeted,
// for logins that are broken off count against the client (max_connect_errors); and where it was
// given up, to learn how long its logins take.
func (ctr *Connector) untilNeeded(race context.Context, w *atomic.Pointer[wire.Conn]) (_ context.Context, end func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(race), ctr.Cfg.ConnectTimeout)
	stopRace := context.AfterFunc(race, func() {
		if !w.Load().HasSpoken() && !errors.Is(context.Cause(race), hosts.ErrGivenUp) {
			cancel()
		}
	})
	stopClose := context.AfterFunc(ctr.Ctx, cancel)
	return ctx, func() { stopRace(); stopClose(); cancel() }
}

// tryHost logs in to a host and asks for its role.
func (ctr *Connector) tryHost(race context.Context, h *host, w *atomic.Pointer[wire.Conn], isRight func(takesWrites bool) bool, answered func()) (candidate, error) {
	bounded, end := ctr.untilNeeded(race, w)
	defer end()
	l, err := ctr.login(bounded, h, h.connector, w)
	asked := ctr.clock.Now()
	if err == nil {
		var takesWrites bool
		if takesWrites, err = ctr.askRole(bounded, &l); err == nil && !isRight(takesWrites) {
			err = newRoleError(takesWrites, asked)
		}
		if err == nil && !takesWrites && ctr.watchesLag() {
			err = ctr.checkLag(bounded, &l)
		}
	}
	if err == nil || isAnswerOfHost(err) {
		ctr.hostSet.Answered(h.index)
		answered()
	} else if bounded.Err() != nil || race.Err() != nil {
		err = errHostSilent
	}
	if err != nil {
		l.close()
		return candidate{}, err
	}
	return candidate{l, asked}, nil
}

// noteHostFailure notes what a failure says about a host: it is left out for a while if it
// said nothing, and is no longer the primary if it takes no writes.
func (ctr *Connector) noteHostFailure(h *host, err error, passedOver bool) {
	var role roleError
	switch {
	case passedOver, err == errHostSilent:
		ctr.hostSet.Silent(h.index, ctr.clock.Now())
	case errors.As(err, &role) && role.readOnly && ctr.hostSet.Demoted(h.index, role.asked, ctr.clock.Now()):
		ctr.retire(h)
	}
}

// noteHostWon notes that a host is the primary, for which the pool leaves last, -1 for none. It
// says whether that is still so.
func (ctr *Connector) noteHostWon(c *candidate, last int) bool {
	isPrimary, isNew := ctr.hostSet.TakesWrites(c.host.index, last, c.asked, ctr.clock.Now())
	if !isNew {
		return isPrimary
	}
	ctr.watchOthers(c.host)
	if last < 0 {
		return true
	}
	ctr.retire(ctr.hosts[last])
	if !ctr.Outage.IsDown() { // whose end tells it
		ctr.Cfg.Log.Warn("livepool: another host takes writes, while the one that did cannot be reached; connections to that are replaced",
			slog.String("addr", ctr.addr), slog.String("host", c.host.addr), slog.String("last", ctr.hosts[last].addr))
	}
	return true
}

// noteDemotion notes that a host has refused a write in answer to a request that was sent at
// asked. The pool then waits for the host that takes writes.
func (ctr *Connector) noteDemotion(h *host, asked time.Duration, refusal error) {
	now := ctr.clock.Now()
	if !ctr.hostSet.Demoted(h.index, asked, now) {
		return
	}
	ctr.retire(h)
	ctr.Outage.Failed(refusal, now, outage.NoPrimary)()
}

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
		texts = append(texts, ctr.hosts[f.Host].addr+": "+f.Err.Error())
	}
	for _, h := range ctr.hosts {
		if slices.ContainsFunc(failed, func(f hosts.Result[candidate]) bool { return f.Host == h.index }) {
			continue
		}
		texts = append(texts, h.addr+": no answer a moment ago, and not tried again yet")
		if e.shortage < outage.NoServer {
			e.shortage, e.cause = outage.NoServer, errHostSilent
		}
	}
	e.text = fmt.Sprintf("none of %d hosts can be used: %s", len(ctr.hosts), strings.Join(texts, "; "))
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
