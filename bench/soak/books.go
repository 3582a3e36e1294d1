// books.go is the tables of a lane, and how they are read when all is over.

package soak

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/livepool/livepool/bench/gauge"
)

const (
	accounts       = 40
	openingBalance = 100_000
	shards         = 8 // of the counter, lest all units wait for one row
)

// What a row of the ledger is of.
const (
	partUnit   = iota // the unit itself
	partInner         // a unit inside it that succeeded
	partUndone        // one that failed: such a row must never be seen
)

// tables are one lane's own. The ledger's unit is not unique: what is applied
// twice must show.
type tables struct{ account, counter, ledger, list, plain, state string }

func newTables(lane string) tables {
	prefix := "soak_" + lane + "_"
	return tables{prefix + "account", prefix + "counter", prefix + "ledger", prefix + "list", prefix + "plain", prefix + "state"}
}

// all are those in which something is written.
func (t tables) all() []string { return []string{t.account, t.counter, t.ledger, t.list, t.plain} }

func (t tables) create() []string {
	var balances, counters []string
	for id := range accounts {
		balances = append(balances, fmt.Sprintf("(%d, %d)", id, openingBalance))
	}
	for id := range shards {
		counters = append(counters, fmt.Sprintf("(%d, 0)", id))
	}
	var empty []string
	for id := range listCount {
		empty = append(empty, fmt.Sprintf("(%d, '')", id))
	}
	statements := []string{
		"CREATE TABLE " + t.plain + " (id BIGINT NOT NULL, note LONGTEXT, KEY (id))",
		"CREATE TABLE " + t.state + " (v VARCHAR(80) NOT NULL)",
		"INSERT INTO " + t.state + " VALUES ('" + clean.table + "')",
		"CREATE TABLE " + t.list + " (id INT PRIMARY KEY, v LONGTEXT NOT NULL)",
		"INSERT INTO " + t.list + " VALUES " + strings.Join(empty, ", "),
		"CREATE TABLE " + t.account + " (id INT PRIMARY KEY, balance BIGINT NOT NULL)",
		"CREATE TABLE " + t.counter + " (id INT PRIMARY KEY, n BIGINT NOT NULL)",
		"CREATE TABLE " + t.ledger + " (id BIGINT AUTO_INCREMENT PRIMARY KEY, unit BIGINT NOT NULL, delivery INT NOT NULL, attempt INT NOT NULL," +
			" part INT NOT NULL, src INT NOT NULL, dst INT NOT NULL, amount INT NOT NULL, KEY (unit))",
		"INSERT INTO " + t.account + " VALUES " + strings.Join(balances, ", "),
		"INSERT INTO " + t.counter + " VALUES " + strings.Join(counters, ", "),
	}
	for _, table := range append(t.all(), t.state) {
		statements = append(statements, "CREATE TABLE "+otherSchema+"."+table+" LIKE "+table)
	}
	return append(statements, "INSERT INTO "+otherSchema+"."+t.state+" VALUES ('of another schema')")
}

// books are what the tables of a lane say.
type books struct {
	rows     []row
	counters [shards]int64
	balances [accounts]int64
	lists    map[int]string // those that are not empty
	plain    map[int64]int  // how often each row is there
	strayed  []string       // what was written into the other schema
}

// row is a row of the ledger.
type row struct {
	unit              int64
	delivery, attempt int
	part              int
	src, dst, amount  int
}

// read reads the books, which are the same on all nodes when all is over.
func (g *ground) read(t tables) (b *books, vs []violation, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := g.settle(ctx); err != nil {
		return nil, nil, err
	}
	if b, err = g.truth().read(ctx, t); err != nil {
		return nil, nil, err
	}
	for _, n := range g.nodes {
		other, err := n.read(ctx, t)
		if err != nil {
			return nil, nil, err
		}
		if text := b.differs(other); text != "" {
			vs = append(vs, violation{Rule: ruleSame, Text: fmt.Sprintf("%s and %s: %s", g.truth().name, n.name, text)})
		}
	}
	return b, vs, nil
}

// differs says in what two books do, "" if in nothing.
func (b *books) differs(o *books) string {
	for i := range max(len(b.rows), len(o.rows)) {
		switch {
		case i >= len(b.rows), i >= len(o.rows):
			return fmt.Sprintf("%d and %d rows in the ledger", len(b.rows), len(o.rows))
		case b.rows[i] != o.rows[i]:
			return fmt.Sprintf("row %d of the ledger: %+v and %+v", i, b.rows[i], o.rows[i])
		}
	}
	if b.counters != o.counters || b.balances != o.balances {
		return fmt.Sprintf("counters %v and %v, balances %v and %v", b.counters, o.counters, b.balances, o.balances)
	}
	if !maps.Equal(b.plain, o.plain) {
		return fmt.Sprintf("%d and %d rows of plain statements, which are not the same", len(b.plain), len(o.plain))
	}
	if !maps.Equal(b.lists, o.lists) {
		return fmt.Sprintf("%d and %d lists, whose elements are not the same", len(b.lists), len(o.lists))
	}
	return ""
}

// read reads the books of one node, at one moment.
func (n *node) read(ctx context.Context, t tables) (*books, error) {
	tx, err := n.admin.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	b := &books{}
	if b.rows, err = readRows(ctx, tx, t, "ORDER BY id"); err != nil {
		return nil, err
	}
	if err := readNumbers(ctx, tx, "SELECT id, n FROM "+t.counter, b.counters[:]); err != nil {
		return nil, err
	}
	if err := readNumbers(ctx, tx, "SELECT id, balance FROM "+t.account, b.balances[:]); err != nil {
		return nil, err
	}
	if b.lists, err = readLists(ctx, tx, t); err != nil {
		return nil, err
	}
	if b.plain, err = gauge.Counts[int64](ctx, tx, "SELECT id, COUNT(*) FROM "+t.plain+" GROUP BY id"); err != nil {
		return nil, err
	}
	for _, table := range t.all() {
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+otherSchema+"."+table).Scan(&n); err != nil {
			return nil, err
		}
		if n > 0 {
			b.strayed = append(b.strayed, fmt.Sprintf("%d rows in %s.%s", n, otherSchema, table))
		}
	}
	return b, nil
}

func readLists(ctx context.Context, db asker, t tables) (map[int]string, error) {
	rows, err := db.QueryContext(ctx, "SELECT id, v FROM "+t.list+" WHERE v <> ''")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[int]string{}
	for rows.Next() {
		var id int
		var v string
		if err := rows.Scan(&id, &v); err != nil {
			return nil, err
		}
		all[id] = v
	}
	return all, rows.Err()
}

// asker is a pool or a transaction.
type asker interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func readRows(ctx context.Context, db asker, t tables, where string) (all []row, err error) {
	rows, err := db.QueryContext(ctx, "SELECT unit, delivery, attempt, part, src, dst, amount FROM "+t.ledger+" "+where)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.unit, &r.delivery, &r.attempt, &r.part, &r.src, &r.dst, &r.amount); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// readNumbers reads pairs of an index and its number.
func readNumbers(ctx context.Context, db asker, query string, into []int64) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		var n int64
		if err := rows.Scan(&id, &n); err != nil {
			return err
		}
		into[id] = n
	}
	return rows.Err()
}
