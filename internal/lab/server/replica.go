package server

// This file is a primary and its replica, or two: how they replicate, and how they change
// places. Each by itself is a Server like any other.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// A Pair is a primary and a replica which follows it by GTID: asynchronously, or with
// Options.SemiSync so that nothing is acknowledged which no replica has. The replica is
// read-only. Either server may be killed and started again, and is then what it was before.
// Options.Replicas gives the primary a second replica, which follows whichever is the primary.
type Pair struct {
	servers  []*Server // a ring: the next one after the primary takes over from it
	template string    // the data directory that all began with
	sql      replication
	semiSync bool

	mu      sync.Mutex     // makes each change of roles whole
	primary atomic.Int32   // index in servers
	awaits  []atomic.Bool  // whether the commits on each wait for a replica
	rebuilt []atomic.Int32 // how often each was
}

// replication is what the kinds call the same thing.
type replication struct {
	args     []string // of all servers
	readOnly string   // the argument that makes a server start read-only
	position string   // all that the server has committed
	follow   string   // another server, whose port is filled in
	resume   string   // more for follow: begin at what this server has, also as a primary
	wait     string   // for a position to be applied, some seconds; gives 0 when it is
	received string   // column of SHOW REPLICA STATUS: the position of what has arrived
	thread   string   // prefix of its columns about the two threads
	semiSync []string // arguments of all servers with which a commit may wait for the replica
	await    string   // whether it does, on the primary
	awaiting string   // the same as an argument
}

var replications = map[bool]replication{ // is it MySQL?
	false: {
		args: []string{"--log-bin=binlog", "--relay-log=relay", "--log-slave-updates=ON", "--gtid-strict-mode=ON",
			"--relay-log-recovery=ON"},
		readOnly: "--read-only=ON",
		position: "SELECT @@GLOBAL.gtid_binlog_pos",
		follow: "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=%d, MASTER_USER='" + replUser + "', MASTER_PASSWORD='" + replPassword + "', " +
			"MASTER_SSL=0, MASTER_SSL_VERIFY_SERVER_CERT=0, " + // 11.8 would insist on it
			"MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos",
		resume:   ", MASTER_DEMOTE_TO_SLAVE=1",
		wait:     "SELECT MASTER_GTID_WAIT(?, ?)",
		received: "Gtid_IO_Pos",
		thread:   "Slave",
		semiSync: []string{"--rpl-semi-sync-slave-enabled=ON", "--rpl-semi-sync-master-timeout=3600000", "--rpl-semi-sync-master-wait-point=AFTER_SYNC",
			"--rpl-semi-sync-slave-kill-conn-timeout=1"}, // what a STOP REPLICA waits for a primary that is frozen
		await:    "SET GLOBAL rpl_semi_sync_master_enabled = %t",
		awaiting: "--rpl-semi-sync-master-enabled=ON",
	},
	true: {
		args: []string{"--log-bin=binlog", "--relay-log=relay", "--gtid-mode=ON", "--enforce-gtid-consistency=ON",
			"--relay-log-recovery=ON", "--sync-binlog=0"}, // only a crash of the machine would show that
		readOnly: "--super-read-only=ON",
		position: "SELECT @@GLOBAL.gtid_executed",
		// Without TLS, caching_sha2_password sends the password only under the source's key.
		follow: "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT=%d, SOURCE_USER='" + replUser + "', SOURCE_PASSWORD='" + replPassword + "', " +
			"SOURCE_CONNECT_RETRY=1, SOURCE_AUTO_POSITION=1, GET_SOURCE_PUBLIC_KEY=1",
		wait:     "SELECT WAIT_FOR_EXECUTED_GTID_SET(?, ?)",
		received: "Retrieved_Gtid_Set",
		thread:   "Replica",
		semiSync: []string{"--plugin-load-add=semisync_source.so;semisync_replica.so", "--loose-rpl-semi-sync-replica-enabled=ON", "--loose-rpl-semi-sync-source-timeout=3600000"},
		await:    "SET GLOBAL rpl_semi_sync_source_enabled = %t",
		awaiting: "--loose-rpl-semi-sync-source-enabled=ON",
	},
}

// StartPair starts a primary and its replicas, with the same options but for Second, and returns when
// they follow it. The context bounds the start only. End them with Close.
func StartPair(ctx context.Context, kind Kind, o Options) (*Pair, error) {
	in, template, err := findWithTemplate(ctx, kind)
	if err != nil {
		return nil, err
	}
	n := 1 + max(1, o.Replicas)
	p := &Pair{
		servers: make([]*Server, n), awaits: make([]atomic.Bool, n), rebuilt: make([]atomic.Int32, n),
		template: template, sql: replications[kind == MySQL], semiSync: o.SemiSync,
	}
	err = p.each(func(i int) error {
		o := o
		if i == 1 {
			o.Args = slices.Concat(o.Args, o.Second)
		}
		s, err := in.furnish(template, o)
		if err != nil {
			return err
		}
		p.servers[i] = s
		s.partArgs = func(context.Context) ([]string, error) { return p.argsOf(i), nil }
		return s.startAnywhere(ctx)
	})
	if err == nil {
		err = p.attachAll(ctx, p.servers[1:], "")
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Pair) argsOf(i int) []string {
	args := append(p.sql.args[:len(p.sql.args):len(p.sql.args)], fmt.Sprintf("--server-id=%d", i+1+len(p.servers)*int(p.rebuilt[i].Load())))
	if p.semiSync {
		args = append(args, p.sql.semiSync...)
	}
	if p.awaits[i].Load() {
		args = append(args, p.sql.awaiting)
	}
	if i != int(p.primary.Load()) {
		args = append(args, p.sql.readOnly)
	}
	return args
}

// Servers are all of them: first the primary, then the replica that takes over next, at the end
// the one that was the primary last.
func (p *Pair) Servers() []*Server {
	primary := p.primary.Load()
	return slices.Concat(p.servers[primary:], p.servers[:primary])
}

// Primary is the server that is the primary now.
func (p *Pair) Primary() *Server { return p.Servers()[0] }

// Replica is the other one; where there are two, the one that takes over next. One that was the
// primary until Promote follows only when Rejoin has made it.
func (p *Pair) Replica() *Server { return p.Servers()[1] }

// lastPrimary is the server that Rejoin and Rebuild bring back.
func (p *Pair) lastPrimary() *Server { return p.Servers()[len(p.servers)-1] }

// CatchUp waits until each replica has all that the primary has committed by now.
func (p *Pair) CatchUp(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.Servers()
	for _, s := range all[1:] {
		if err := p.catchUp(ctx, s, all[0]); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pair) catchUp(ctx context.Context, s, source *Server) error {
	position, err := p.positionOf(ctx, source)
	if err != nil {
		return err
	}
	return p.awaitApplied(ctx, s, position)
}

// Switch makes the two change places in the way an operator plans it: the primary refuses
// writes from then on, the replica catches up and takes them, the old primary follows it, and so
// does another replica. Clients stay connected to all. A statement that writes, or LOCK TABLES,
// can hold this up; then the error is the server's 1205, and everything is as it was.
func (p *Pair) Switch(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, next := p.Primary(), p.Replica()
	if err := old.setReadOnly(ctx, true); err != nil {
		return fmt.Errorf("the primary cannot be made read-only: %w", err)
	}
	if err := p.catchUp(ctx, next, old); err != nil {
		return errors.Join(err, old.SetReadOnly(false))
	}
	if err := p.promote(ctx, next); err != nil {
		return err
	}
	return p.attachAll(ctx, p.Servers()[1:], p.sql.resume)
}

// Promote makes the replica the primary without asking the old one, which is dead or cannot be
// reached. What the replica, or another one, has received it applies first; what none has is
// lost. Another replica has to run, and follows the new primary. An old primary that still runs is
// not told, as nobody could, and goes on taking writes.
func (p *Pair) Promote(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, others := p.Replica(), p.Servers()[2:]
	for _, s := range p.Servers()[1:] {
		if err := p.applyReceived(ctx, s); err != nil {
			return err
		}
	}
	for _, s := range others {
		err := p.mayFollow(ctx, s, next)
		if errors.Is(err, ErrDiverged) { // it has received more
			err = p.attach(ctx, next, s, "")
		}
		if err != nil {
			return err
		}
	}
	if err := p.promote(ctx, next); err != nil {
		return err
	}
	return p.attachAll(ctx, others, "")
}

// applyReceived has a replica receive no more, and waits until it has applied what it has.
func (p *Pair) applyReceived(ctx context.Context, s *Server) error {
	if err := s.exec(ctx, "STOP REPLICA IO_THREAD"); err != nil {
		return err
	}
	status, err := s.replicaStatus(ctx)
	if err != nil {
		return err
	}
	return p.awaitApplied(ctx, s, status[p.sql.received])
}

// ErrDiverged is what Rejoin says of transactions that only the old primary has.
var ErrDiverged = errors.New("the old primary committed what the new one never received")

// Rejoin brings the old primary back after Promote: it is started if it does not run, made
// read-only, and follows the new one. If it has transactions that the new one never got, they
// cannot both be right: then it stays as it is, and the error is ErrDiverged.
func (p *Pair) Rejoin(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.lastPrimary()
	if err := old.start(ctx); err != nil {
		return err
	}
	// A commit that waits for a replica, of which there is none any more, would hold up the rest.
	if err := p.awaitReplica(ctx, old, false); err != nil {
		return err
	}
	if err := old.setReadOnly(ctx, true); err != nil {
		return err
	}
	return p.attach(ctx, old, p.Primary(), p.sql.resume)
}

// Rebuild brings the old primary back where Rejoin refuses. Its data is thrown away, and it
// begins anew with what all began with: the binary logs of the new one, which are never
// purged, have all that came after that. The more that is, the longer it takes. Its server_id is
// another one, for a replica skips what has its own.
func (p *Pair) Rebuild(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.lastPrimary()
	if err := old.Kill(); err != nil {
		return err
	}
	if err := os.RemoveAll(old.data()); err != nil {
		return err
	}
	if err := copyTree(p.template, old.data()); err != nil {
		return err
	}
	p.rebuilt[slices.Index(p.servers, old)].Add(1)
	if err := old.start(ctx); err != nil {
		return err
	}
	return p.attach(ctx, old, p.Primary(), "")
}

// Close kills all servers and removes all that they wrote.
func (p *Pair) Close() error {
	return p.each(func(i int) error {
		if p.servers[i] == nil {
			return nil
		}
		return p.servers[i].Close()
	})
}

// promote makes the replica that takes over next the primary; it has applied everything.
func (p *Pair) promote(ctx context.Context, next *Server) error {
	if err := next.exec(ctx, "STOP REPLICA; RESET REPLICA ALL"); err != nil {
		return err
	}
	p.primary.Store((p.primary.Load() + 1) % int32(len(p.servers)))
	return next.setReadOnly(ctx, false)
}

// attachAll makes servers follow the primary.
func (p *Pair) attachAll(ctx context.Context, servers []*Server, more string) error {
	for _, s := range servers {
		if err := p.attach(ctx, s, p.Primary(), more); err != nil {
			return err
		}
	}
	return nil
}

// attach makes s follow the primary, or another server, and waits until it does and has caught up.
func (p *Pair) attach(ctx context.Context, s, primary *Server, more string) error {
	if err := p.mayFollow(ctx, s, primary); err != nil {
		return err
	}
	if err := p.awaitReplica(ctx, s, false); err != nil {
		return err
	}
	if err := s.exec(ctx, "STOP REPLICA; "+fmt.Sprintf(p.sql.follow, primary.port)+more+"; START REPLICA"); err != nil {
		return err
	}
	var status map[string]string
	err := poll(ctx, func() (_ bool, err error) {
		status, err = s.replicaStatus(ctx)
		return status[p.sql.thread+"_IO_Running"] == "Yes", errors.Join(err, p.brokenBy(status))
	})
	if err != nil {
		return fmt.Errorf("the replica does not follow: %w; %s", err, status["Last_IO_Error"])
	}
	return errors.Join(p.awaitReplica(ctx, primary, true), p.catchUp(ctx, s, primary))
}

// awaitReplica has the commits on s wait for a replica, or not, if replication is semi-synchronous.
func (p *Pair) awaitReplica(ctx context.Context, s *Server, on bool) error {
	if !p.semiSync {
		return nil
	}
	err := s.exec(ctx, fmt.Sprintf(p.sql.await, on))
	if err == nil {
		p.awaits[slices.Index(p.servers, s)].Store(on)
	}
	return err
}

// mayFollow refuses to let s follow a primary that lacks some of its transactions. MySQL would
// keep them, and MariaDB notices only what is newer than all that the primary has.
func (p *Pair) mayFollow(ctx context.Context, s, primary *Server) error {
	has, err := p.positionOf(ctx, s)
	if err != nil {
		return err
	}
	var known bool
	if s.Kind() == MySQL {
		err = primary.queryRow(ctx, "SELECT GTID_SUBSET(?, @@GLOBAL.gtid_executed)", []any{has}, &known)
	} else {
		err = primary.queryRow(ctx, "SELECT ? = '' OR MASTER_GTID_WAIT(?, 0) = 0", []any{has, has}, &known)
	}
	if err == nil && !known {
		err = fmt.Errorf("%w: it is at %s", ErrDiverged, has)
	}
	return err
}

func (p *Pair) positionOf(ctx context.Context, s *Server) (position string, err error) {
	err = s.queryRow(ctx, p.sql.position, nil, &position)
	return position, err
}

// awaitApplied waits until the replica s has applied all up to position.
func (p *Pair) awaitApplied(ctx context.Context, s *Server, position string) error {
	err := poll(ctx, func() (bool, error) {
		var left int
		if err := s.queryRow(ctx, p.sql.wait, []any{position, 0.5}, &left); err != nil {
			return false, err
		}
		if left == 0 {
			return true, nil
		}
		status, err := s.replicaStatus(ctx)
		return false, errors.Join(err, p.brokenBy(status))
	})
	if err != nil {
		return fmt.Errorf("the replica does not get to %q: %w", position, err)
	}
	return nil
}

// brokenBy is the error that keeps replication from going on, if there is one. Failing to
// connect is not: that is tried again.
func (p *Pair) brokenBy(status map[string]string) error {
	for _, thread := range []string{"IO", "SQL"} {
		if text := status["Last_"+thread+"_Error"]; text != "" && status[p.sql.thread+"_"+thread+"_Running"] == "No" {
			return errors.New(text)
		}
	}
	return nil
}

// replicaStatus is SHOW REPLICA STATUS by the names of its columns; empty if s is no replica.
func (s *Server) replicaStatus(ctx context.Context) (status map[string]string, err error) {
	err = s.admin(ctx, func(ctx context.Context, c *sql.Conn) error {
		rows, err := c.QueryContext(ctx, "SHOW REPLICA STATUS")
		if err != nil {
			return err
		}
		defer rows.Close()
		names, err := rows.Columns()
		if err != nil || !rows.Next() {
			return errors.Join(err, rows.Err())
		}
		values, dest := make([]sql.NullString, len(names)), make([]any, len(names))
		for i := range values {
			dest[i] = &values[i]
		}
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		status = map[string]string{}
		for i, name := range names {
			status[name] = values[i].String
		}
		return nil
	})
	return status, err
}

// each runs f for the index of each server, at the same time.
func (p *Pair) each(f func(i int) error) error {
	errs := make([]error, len(p.servers))
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
