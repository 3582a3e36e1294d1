// left.go looks for what is left when all is over: connections, transactions and
// locks on the server, goroutines and child processes here.

package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// leftovers waits until nothing of the lanes is left on any server, and says
// what is after all.
func (g *ground) leftovers(patience time.Duration) (vs []violation) {
	deadline := time.Now().Add(patience)
	for {
		var err error
		if vs, err = g.lookForLeftovers(); err != nil {
			vs = append(vs, violation{Rule: "the server answers", Text: err.Error()})
		}
		if len(vs) == 0 || time.Now().After(deadline) {
			return vs
		}
		// innodb_trx tells old news to whoever asks more often than each 0.1 s.
		time.Sleep(300 * time.Millisecond)
	}
}

func (g *ground) lookForLeftovers() (vs []violation, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, l := range g.lanes {
		if n := l.conns(); n > 0 {
			vs = append(vs, violation{Rule: "no connection is left", Text: fmt.Sprintf("%d of the %s pool are open on its own side", n, l.name)})
		}
	}
	for _, n := range g.nodes {
		left, err := n.lookForLeftovers(ctx, g.lanes)
		vs = append(vs, left...)
		if err != nil {
			return vs, fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return vs, nil
}

func (n *node) lookForLeftovers(ctx context.Context, lanes []*lane) (vs []violation, err error) {
	for _, l := range lanes {
		left, err := n.list(ctx, "SELECT CONCAT_WS(' ', id, user, host, command, time, state, info) FROM information_schema.processlist WHERE user = '"+l.user+"'")
		if err != nil {
			return vs, err
		}
		if left != nil {
			vs = append(vs, violation{Rule: "no connection is left", Text: fmt.Sprintf("on %s, of the %s pool:\n%s", n.name, l.name, strings.Join(left, "\n"))})
		}
	}
	left, err := n.list(ctx, "SELECT CONCAT_WS(' ', trx_id, trx_state, trx_started, trx_mysql_thread_id, trx_query) FROM information_schema.innodb_trx")
	if err != nil {
		return vs, err
	}
	if left != nil {
		vs = append(vs, violation{Rule: "no transaction is left", Text: n.name + ": " + strings.Join(left, "\n")})
	}
	locks, err := n.locks(ctx)
	return append(vs, locks...), err
}

// locks tries to lock every row of every table: a lock that is left would be in
// the way. A replica of MySQL's refuses that, and has told of its transactions.
func (n *node) locks(ctx context.Context) (vs []violation, err error) {
	tx, err := n.admin.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	tables, err := n.list(ctx, "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()")
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		var rows int64
		var my *mysql.MySQLError
		const readOnly = 1290
		err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+t+" FOR UPDATE NOWAIT").Scan(&rows)
		if errors.As(err, &my) && my.Number == readOnly {
			return nil, nil
		}
		if err != nil {
			return append(vs, violation{Rule: "no lock is left", Text: fmt.Sprintf("%s: %s: %v", n.name, t, err)}), nil
		}
	}
	return vs, nil
}

// traces are what this process has: goroutines by where they were started, and
// children.
type traces struct {
	goroutines map[string]int
	children   []string
}

func takeTraces() *traces {
	t := &traces{goroutines: map[string]int{}, children: children()}
	for stack := range strings.SplitSeq(stacks(), "\n\n") {
		t.goroutines[starter(stack)]++
	}
	return t
}

// stacks are those of all goroutines.
func stacks() string {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return string(buf[:n])
		}
	}
}

// starter is where a goroutine was started, from its stack.
func starter(stack string) string {
	_, created, ok := strings.Cut(stack, "created by ")
	if !ok {
		return "main"
	}
	name, _, _ := strings.Cut(created, "\n")
	name, _, _ = strings.Cut(name, " in goroutine")
	return name
}

// children are the processes whose parent this one is.
func children() (all []string) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		if text, err := os.ReadFile(list); err == nil {
			all = append(all, strings.Fields(string(text))...)
		}
	}
	return all
}

// compare says what is left that was not there before. What is about to end has
// a while for it.
func (t *traces) compare(patience time.Duration) (vs []violation) {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		now := takeTraces()
		vs = nil
		for name, n := range now.goroutines {
			if more := n - t.goroutines[name]; more > 0 {
				vs = append(vs, violation{Rule: "no goroutine is left", Text: fmt.Sprintf("%d started by %s, such as\n%s", more, name, exampleOf(name))})
			}
		}
		for _, pid := range now.children {
			if !slices.Contains(t.children, pid) {
				vs = append(vs, violation{Rule: "no child process is left", Text: "process " + pid})
			}
		}
		if len(vs) == 0 || time.Now().After(deadline) {
			return vs
		}
	}
}

func exampleOf(name string) string {
	for stack := range strings.SplitSeq(stacks(), "\n\n") {
		if starter(stack) == name {
			return stack
		}
	}
	return "none any more"
}
