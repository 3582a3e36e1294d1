// committable.go is the table of committed keys: its name, its DDL, and whether one
// that exists can keep the promise of Once and VerifyCommit. It runs no statement.

package committable

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// Table is the table as statements name it: always with its schema, for a
// unit may have said USE another. It does not change.
type Table struct {
	Name        string
	NoSchemaErr error // there is no schema
}

// New takes the schema from the DSN, if the setting has none. Below
// OpenConnector the DSN is not known.
func New(setting, schema string, dsnKnown bool) Table {
	if s, table, ok := strings.Cut(setting, "."); ok {
		return Table{Name: QuoteName(s) + "." + QuoteName(table)}
	}
	switch {
	case schema != "":
		return Table{Name: QuoteName(schema) + "." + QuoteName(setting)}
	case dsnKnown:
		return Table{Name: QuoteName(setting), NoSchemaErr: fmt.Errorf("livepool: the commit table %s has no schema: "+
			"the DSN names no database; name one there, or set CommitTable (pool_commit_table) to schema.table", setting)}
	}
	return Table{Name: setting}
}

func QuoteName(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// Ddl creates it.
func (ct *Table) Ddl() string {
	return "CREATE TABLE IF NOT EXISTS " + ct.Name + ` (
	unit VARBINARY(255) NOT NULL PRIMARY KEY,
	committed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
	KEY (committed_at)
) ENGINE=InnoDB`
}

// Explain adds to a server's error what is to be done about the table.
func (ct *Table) Explain(err error) error {
	switch mysqlerr.Number(err) {
	case 1146:
		return fmt.Errorf("livepool: the commit table, which Once and VerifyCommit need, does not exist: call CreateCommitTable once, or run %s: %w", ct.Ddl(), err)
	case 1142:
		return fmt.Errorf("livepool: the user lacks a privilege on the commit table, which Once and VerifyCommit need: "+
			"GRANT SELECT, INSERT, DELETE ON %s, and where it is still to be created, have that done with %s: %w", ct.Name, ct.Ddl(), err)
	}
	return err
}

// Refusal is the error of a table that lacks something, nil if it does not.
func (ct *Table) Refusal(defects []string) error {
	if defects == nil {
		return nil
	}
	return fmt.Errorf("livepool: the commit table %s cannot keep the promise of Once and VerifyCommit: %s; "+
		"nothing was applied; rename it, and create it with CreateCommitTable, or with %s", ct.Name, strings.Join(defects, "; "), ct.Ddl())
}

// What SHOW CREATE TABLE says of what matters, with and without quotes.
var (
	ddlTemporary = regexp.MustCompile(`(?i)^CREATE\s+TEMPORARY\b`)
	ddlEngine    = regexp.MustCompile("(?i)\n\\)\\s*ENGINE\\s*=\\s*(\\w+)")
	ddlColumn    = regexp.MustCompile("(?im)^\\s*[`\"]?unit[`\"]?\\s+(\\w+)(?:\\((\\d+)\\))?")
	ddlKey       = regexp.MustCompile("(?im)^\\s*(PRIMARY|UNIQUE)\\s+KEY\\s+(?:[`\"]?([^`\"(\n]+?)[`\"]?\\s+)?\\([`\"]?unit[`\"]?(?:\\s+(?:ASC|DESC))?\\)")
)

// transactionalEngines are the engines that keep a key exactly if they keep the work.
var transactionalEngines = []string{"INNODB", "ROCKSDB", "TOKUDB", "NDBCLUSTER", "OCEANBASE"}

// Inspect finds what a table of keys lacks: nil if nothing, or if that is not
// shown.
func Inspect(ddl string) (key string, defects []string) {
	if ddlTemporary.MatchString(ddl) {
		defects = append(defects, "it is temporary")
	}
	if engine := ddlEngine.FindStringSubmatch(ddl); engine != nil && !containsFold(transactionalEngines, engine[1]) {
		defects = append(defects, "its engine is "+engine[1]+", in which a key survives the rollback of its unit")
	}
	switch column := ddlColumn.FindStringSubmatch(ddl); {
	case column == nil:
		defects = append(defects, "it has no column unit, or is no table")
	default:
		length, _ := strconv.Atoi(column[2])
		if !strings.EqualFold(column[1], "VARBINARY") {
			defects = append(defects, "its column unit is "+strings.TrimSpace(column[0])+", in which different keys may be equal: it has to be VARBINARY(255)")
		} else if length < MaxKey {
			defects = append(defects, fmt.Sprintf("its column unit holds %d bytes, and may cut longer keys off", length))
		}
	}
	unique := ddlKey.FindStringSubmatch(ddl)
	if unique == nil {
		return "", append(defects, "it has no unique key on the column unit alone and as a whole, so that a key is accepted twice")
	}
	if strings.EqualFold(unique[1], "PRIMARY") {
		return "PRIMARY", defects
	}
	return unique[2], defects
}

func containsFold(words []string, word string) bool {
	for _, w := range words {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

// MaxKey is the length of the key column, in bytes.
const MaxKey = 255

// KeyLiteral is the key in a statement's text, because a statement with arguments
// costs the driver a round trip more.
func KeyLiteral(key string) string { return "x'" + hex.EncodeToString([]byte(key)) + "'" }
