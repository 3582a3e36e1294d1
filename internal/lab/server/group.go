package server

// This file is a group of MySQL servers (Group Replication) with one primary: how they find each
// other, elect the primary, leave and come back. Each member by itself is a Server like any other.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// A Group is a group of MySQL servers in single-primary mode, the server's default. The others
// are read-only, and one of them becomes the primary when that is gone.
type Group struct {
	name    string // a UUID
	members []*groupMember
}

type groupMember struct {
	*Server
	group int // the port on which the others reach it
}

// StartGroup starts a group, all of its members with the same options, and returns when all are
// online. The context bounds the start only. End it with Close.
func StartGroup(ctx context.Context, members int, o Options) (*Group, error) {
	in, template, err := findWithTemplate(ctx, MySQL)
	if err != nil {
		return nil, err
	}
	var g *Group
	// The ports are free now and may be taken before the servers have them.
	for range 5 {
		g, err = in.tryGroup(ctx, template, members, o)
		if err == nil || !strings.Contains(err.Error(), "Do you already have another") && !strings.Contains(err.Error(), "Unable to announce tcp port") {
			break
		}
	}
	return g, err
}

func (in *Install) tryGroup(ctx context.Context, template string, members int, o Options) (_ *Group, err error) {
	g := &Group{name: newUUID()}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	var ports []*int
	for i := range members {
		s, err := in.furnish(template, o)
		if err != nil {
			return nil, err
		}
		m := &groupMember{Server: s}
		g.members = append(g.members, m)
		ports = append(ports, &m.port, &m.group)
		s.partArgs = func(context.Context) ([]string, error) { return g.argsOf(i), nil }
	}
	if err := choosePorts(ports...); err != nil {
		return nil, err
	}
	errs := make([]error, members)
	var wg sync.WaitGroup
	for i, m := range g.members {
		wg.Go(func() { errs[i] = m.start(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	first := g.members[0]
	if err := first.exec(ctx, "SET GLOBAL group_replication_bootstrap_group = ON; "+joinGroup+"; SET GLOBAL group_replication_bootstrap_group = OFF"); err != nil {
		return nil, fmt.Errorf("the group does not begin: %w\n%s", err, first.Log())
	}
	for i := range g.members[1:] { // one after the other: each has to see the others
		if err := g.join(ctx, 1+i); err != nil {
			return nil, err
		}
	}
	return g, g.AwaitOnline(ctx)
}

// newUUID is a random one (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// joinGroup also gives the account by which a member gets what it has missed from another.
const joinGroup = "START GROUP_REPLICATION USER='" + replUser + "', PASSWORD='" + replPassword + "'"

// groupArgs are what all members have in common. The members' list is in the performance schema.
// A member that is gone is expelled at once when it is noticed, which takes the others 5 s
// (MySQL manual, group_replication_member_expel_timeout).
var groupArgs = []string{
	"--performance-schema=ON",
	"--log-bin=binlog", "--relay-log=relay", "--relay-log-recovery=ON", "--sync-binlog=0",
	"--gtid-mode=ON", "--enforce-gtid-consistency=ON",
	"--report-host=127.0.0.1",
	"--plugin-load-add=group_replication.so",
	"--loose-group-replication-start-on-boot=OFF",
	"--loose-group-replication-ip-allowlist=127.0.0.1",
	"--loose-group-replication-member-expel-timeout=0",
	"--loose-group-replication-message-cache-size=134217728", // the least that it takes
	"--loose-group-replication-recovery-get-public-key=ON",
	"--loose-group-replication-recovery-reconnect-interval=1",
}

func (g *Group) argsOf(i int) []string {
	var seeds []string
	for _, m := range g.members {
		seeds = append(seeds, fmt.Sprintf("127.0.0.1:%d", m.group))
	}
	return append(groupArgs[:len(groupArgs):len(groupArgs)],
		fmt.Sprintf("--server-id=%d", i+1),
		"--loose-group-replication-group-name="+g.name,
		"--loose-group-replication-local-address="+seeds[i],
		"--loose-group-replication-group-seeds="+strings.Join(seeds, ","))
}

// Members are the members of the group, in the order of their numbers.
func (g *Group) Members() (members []*Server) {
	for _, m := range g.members {
		members = append(members, m.Server)
	}
	return members
}

// memberQuery asks a member for its own state and role.
const memberQuery = "SELECT COUNT(*) FROM performance_schema.replication_group_members WHERE MEMBER_ID = @@server_uuid AND MEMBER_STATE = 'ONLINE'"

// Primary is the number of the member that is the primary and takes writes, -1 while none does.
func (g *Group) Primary(ctx context.Context) int { return g.primaryButFor(ctx, -1) }

// primaryButFor asks all but one, which may be paused.
func (g *Group) primaryButFor(ctx context.Context, not int) int {
	for i, m := range g.members {
		var primary, readOnly int
		if i == not {
			continue
		}
		err := m.queryRow(ctx, "SELECT ("+memberQuery+" AND MEMBER_ROLE = 'PRIMARY'), @@GLOBAL.super_read_only", nil, &primary, &readOnly)
		if err == nil && primary == 1 && readOnly == 0 {
			return i
		}
	}
	return -1
}

// AwaitPrimary waits until a member other than that number takes writes, and returns its number.
func (g *Group) AwaitPrimary(ctx context.Context, not int) (primary int, err error) {
	err = poll(ctx, func() (bool, error) {
		primary = g.primaryButFor(ctx, not)
		return primary >= 0, nil
	})
	return primary, err
}

// Switch makes another member the primary, as an operator plans it. Transactions under way on the
// old one end first. With a limit, in whole seconds, their connections are closed after that, and
// until then the old one refuses all other statements (error 4094); 0 is no limit.
func (g *Group) Switch(ctx context.Context, to int, limit time.Duration) error {
	var uuid, said string
	if err := g.members[to].queryRow(ctx, "SELECT @@server_uuid", nil, &uuid); err != nil {
		return err
	}
	query, args := "SELECT group_replication_set_as_primary(?)", []any{uuid}
	if limit > 0 {
		query, args = "SELECT group_replication_set_as_primary(?, ?)", []any{uuid, int(limit.Seconds())}
	}
	return g.members[to].queryRow(ctx, query, args, &said)
}

// KillMember ends a member as a crash does.
func (g *Group) KillMember(i int) error { return g.members[i].Kill() }

// StartMember brings back a member that was killed, or that runs and was expelled while it was
// paused, and returns when it has what it missed. An expelled one has gone offline (MySQL manual,
// group_replication_exit_state_action). The context bounds the start only.
func (g *Group) StartMember(ctx context.Context, i int) error {
	m := g.members[i]
	if err := m.start(ctx); err != nil {
		return err
	}
	if err := m.exec(ctx, "STOP GROUP_REPLICATION; SET GLOBAL offline_mode = OFF"); err != nil {
		return err
	}
	return g.join(ctx, i)
}

// join has a member take part, and waits until it has what it missed. The others refuse one of
// which they have not noticed yet that it was gone.
func (g *Group) join(ctx context.Context, i int) error {
	m := g.members[i]
	var refusal error
	err := poll(ctx, func() (bool, error) {
		refusal = m.exec(ctx, joinGroup)
		return refusal == nil, nil
	})
	if err == nil {
		err = poll(ctx, func() (bool, error) {
			var online int
			err := m.queryRow(ctx, memberQuery, nil, &online)
			return online == 1, err
		})
	}
	if err != nil {
		return fmt.Errorf("member %d does not join: %w\n%s", i, errors.Join(err, refusal), m.Log())
	}
	return nil
}

// AwaitOnline waits until all members are online, and have applied what was committed by now.
func (g *Group) AwaitOnline(ctx context.Context) error {
	err := poll(ctx, func() (bool, error) {
		for _, m := range g.members {
			var online int
			err := m.queryRow(ctx, "SELECT COUNT(*) FROM performance_schema.replication_group_members WHERE MEMBER_STATE = 'ONLINE'", nil, &online)
			if err != nil || online != len(g.members) {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("the members do not become one group: %w", err)
	}
	primary, err := g.AwaitPrimary(ctx, -1)
	if err != nil {
		return err
	}
	var has string
	if err := g.members[primary].queryRow(ctx, "SELECT @@GLOBAL.gtid_executed", nil, &has); err != nil {
		return err
	}
	for _, m := range g.members {
		var timedOut int
		if err := m.queryRow(ctx, "SELECT WAIT_FOR_EXECUTED_GTID_SET(?, 10)", []any{has}, &timedOut); err != nil || timedOut != 0 {
			return errors.Join(err, fmt.Errorf("a member does not apply what the primary has (%d)", timedOut))
		}
	}
	return nil
}

// Close kills all members and removes all that they wrote.
func (g *Group) Close() error {
	var errs []error
	for _, m := range g.members {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
