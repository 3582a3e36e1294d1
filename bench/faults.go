// faults.go is the plan of a run: what happens to the connections, when, and
// whether livepool promises that no job is lost by it. It waits and strikes; it
// judges nothing.

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/livepool/livepool/internal/lab/proxy"
)

// phase is one stretch of a run: the workers idle, something may happen to them,
// and then a burst of jobs arrives.
type phase struct {
	name string
	what string // happens, for a person
	idle time.Duration

	// strike is what happens to all lanes: in the middle of the idle time, or of
	// the burst if atWork is set. Nil: nothing does.
	strike func(ctx context.Context, r *run) error
	atWork bool
	// heal ends what strike began, after the burst.
	heal func(r *run)

	// promised: livepool loses no job here. It promises nothing for what is
	// under way when the connection dies: that it cannot know to be safe.
	promised bool
	// needs says what the server must allow, if not everything has it.
	needs func(s *site) error
}

const (
	shortIdle = 1200 * time.Millisecond // longer than livepool's PingAfter, so that a silent death is looked for
	longIdle  = waitTimeout + time.Second
	silence   = 3 * time.Second
	calmIdle  = 3 * time.Second
	switching = 2 * time.Second
	// An outage is shorter than jobTimeout, so that who waits for its end can succeed
	// and who hangs is seen to hang. A longer jobTimeout would show the same and make
	// the run longer by twice as much: in two phases plain connections hang until then.
	outage = 7 * time.Second
)

var plan = []phase{
	{
		name: "calm", what: "nothing happens", idle: 0, promised: true,
	},
	{
		name: "wait_timeout", what: fmt.Sprintf("idle for %s, wait_timeout is %s", longIdle, waitTimeout),
		idle: longIdle, promised: true,
	},
	{
		name: "killed", what: "KILL of all connections while idle",
		idle: shortIdle, strike: killConnections, promised: true,
	},
	{
		name: "restart", what: "server SIGKILLed and started again while idle",
		idle: shortIdle, strike: restart, promised: true, needs: canRestart,
	},
	{
		name: "FIN", what: "all connections closed by the network while idle",
		idle: shortIdle, strike: eachProxy((*proxy.Proxy).FIN), promised: true,
	},
	{
		name: "RST", what: "all connections reset by the network while idle",
		idle: shortIdle, strike: eachProxy((*proxy.Proxy).RST), promised: true,
	},
	{
		name: "forgotten", what: "a NAT forgets the idle connections: their next packet is answered by RST",
		idle: shortIdle, strike: forget, heal: remember, promised: true,
	},
	{
		name: "black hole", what: "idle connections vanish without a word, new ones work",
		idle: shortIdle, strike: eachProxy((*proxy.Proxy).Stall), heal: heal, promised: true,
	},
	{
		name: "restart at work", what: "server SIGKILLed and started again under running jobs",
		idle: shortIdle, strike: restart, atWork: true, needs: canRestart,
	},
	{
		name: "switch of roles", what: fmt.Sprintf("as in a planned failover: the server refuses writes for %s and kills its connections, under running jobs", switching),
		idle: shortIdle, strike: switchRoles, atWork: true, needs: canRestart,
	},
	{
		name: "outage", what: fmt.Sprintf("connections reset under running jobs, new ones refused for %s", outage),
		idle: shortIdle, strike: refuse, atWork: true,
	},
	{
		name: "COMMIT unanswered", what: fmt.Sprintf("%d connections die between COMMIT and its answer: the job is done, and gets an error", lostCommits),
		idle: shortIdle, strike: loseCommits, heal: remember,
	},
	{
		name: "silent server", what: fmt.Sprintf("connections reset under running jobs; new ones are accepted but hear nothing for %s", silence),
		idle: shortIdle, strike: fallSilent, atWork: true,
	},
	{
		name: "recovered", what: fmt.Sprintf("the server has been well again for more than %s; who still waits for its greeting is stuck", calmIdle),
		idle: calmIdle, promised: true,
	},
}

// planFor returns the plan less what the server does not allow, and says what
// that is.
func planFor(s *site) (phases []phase, skipped []string) {
	for _, p := range plan {
		if p.needs != nil {
			if err := p.needs(s); err != nil {
				skipped = append(skipped, fmt.Sprintf("%s: %v", p.name, err))
				continue
			}
		}
		phases = append(phases, p)
	}
	return phases, skipped
}

func canRestart(s *site) error {
	switch {
	case s.kill != nil:
		return nil
	case s.firstLook != "":
		return errors.New("the embedded server keeps its rows in memory and takes no orders")
	default:
		return errors.New("the server is yours")
	}
}

func eachProxy(fault func(*proxy.Proxy)) func(context.Context, *run) error {
	return func(_ context.Context, r *run) error {
		for _, l := range r.lanes {
			fault(l.proxy)
		}
		return nil
	}
}

func heal(r *run) {
	for _, l := range r.lanes {
		l.proxy.Heal()
	}
}

// killConnections kills the lanes' own connections and no others.
func killConnections(ctx context.Context, r *run) error {
	for _, l := range r.lanes {
		for _, id := range l.takeConnIDs() {
			if err := kill(ctx, r.admin, id); err != nil {
				return err
			}
		}
	}
	return nil
}

const errNoSuchThread = 1094

func kill(ctx context.Context, admin *sql.DB, id int64) error {
	_, err := admin.ExecContext(ctx, fmt.Sprintf("KILL %d", id))
	if serverErrorNumber(err) == errNoSuchThread {
		return nil // it was closed meanwhile
	}
	return err
}

// restart also forgets the connections' ids: the new server gives them anew.
func restart(_ context.Context, r *run) error {
	if err := r.site.kill(); err != nil {
		return err
	}
	for _, l := range r.lanes {
		l.takeConnIDs()
	}
	return r.site.start()
}

// forget has the next request on each idle connection answered by a reset. The
// proxy cannot tell old connections from new ones here, but the requests with
// which a job begins come on the idle ones first.
func forget(_ context.Context, r *run) error {
	for _, l := range r.lanes {
		for range min(l.proxy.Conns(), workers) {
			r.cuts = append(r.cuts, l.proxy.CutBefore(beginsJob, proxy.RST))
		}
	}
	return nil
}

// lostCommits is how many jobs of each lane lose the answer to their COMMIT.
const lostCommits = 8

// loseCommits has the connections of the next transactions die when the server has
// committed, before its answer arrives.
func loseCommits(_ context.Context, r *run) error {
	for _, l := range r.lanes {
		for range lostCommits {
			r.cuts = append(r.cuts, l.proxy.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.RST))
		}
	}
	return nil
}

func beginsJob(cmd byte, payload []byte) bool {
	return proxy.Command(proxy.ComPing)(cmd, payload) || proxy.QueryPrefix("START TRANSACTION")(cmd, payload)
}

func remember(r *run) {
	for _, cut := range r.cuts {
		cut.Cancel()
	}
	r.cuts = nil
}

// fallSilent resets what there is and leaves new connections without a
// greeting for a while, as a server that hangs behind a balancer does.
func fallSilent(ctx context.Context, r *run) error {
	for _, l := range r.lanes {
		l.proxy.HangNew(true)
		l.proxy.RST()
	}
	err := wait(ctx, silence)
	for _, l := range r.lanes {
		l.proxy.HangNew(false)
	}
	return err
}

// refuse resets what there is and has the kernel refuse new connections for a while,
// as where no server runs.
func refuse(ctx context.Context, r *run) error {
	for _, l := range r.lanes {
		l.proxy.Refuse()
		l.proxy.RST()
	}
	err := wait(ctx, outage)
	for _, l := range r.lanes {
		err = errors.Join(err, l.proxy.Reopen())
	}
	return err
}

// switchRoles makes the server what the old primary is after a planned failover,
// and then what the new one is. Connections are killed while the server turns
// read-only too: it waits for a statement that waits for the lock of a transaction
// whose next statement waits for it.
func switchRoles(ctx context.Context, r *run) error {
	turned := make(chan error, 1)
	go func() { turned <- r.site.readOnly(true) }()
	for done := false; !done; {
		select {
		case err := <-turned:
			if err != nil {
				return err
			}
			done = true
		case <-time.After(100 * time.Millisecond):
		}
		if err := r.site.killClients(); err != nil {
			return err
		}
	}
	return errors.Join(wait(ctx, switching), r.site.readOnly(false))
}
