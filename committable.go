// committable.go is the table of committed keys: its name, its DDL, and whether one
// that exists can keep the promise of Once and VerifyCommit. It runs no statement.

package livepool

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// commitTable is the table as statements name it: always with its schema, for a
// unit may have said USE another. It does not change.
type commitTable struct {
	name  string
	wrong error // there is no schema
}

// newCommitTable takes the schema from the DSN, if the setting has none. Below
// OpenConnector the DSN is not known.
func newCommitTable(setting, schema string, dsnKnown bool) commitTable {
	if s, table, ok := strings.Cut(setting, "."); ok {
		return commitTable{name: quoted(s) + "." + quoted(table)}
	}
	switch {
	case schema != "":
		return commitTable{name: quoted(schema) + "." + quoted(setting)}
	case dsnKnown:
		return commitTable{name: quoted(setting), wrong: fmt.Errorf("livepool: the commit table %s has no schema: "+
			"the DSN names no database; name one there, or set CommitTable (pool_commit_table) to schema.table", setting)}
	}
	return commitTable{name: setting}
}

func quoted(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// ddl creates it.
func (ct *commitTable) ddl() string {
	return "CREATE TABLE IF NOT EXISTS " + ct.name + ` (
	unit VARBINARY(255) NOT NULL PRIMARY KEY,
	committed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
	KEY (committed_at)
) ENGINE=InnoDB`
}

// explain adds to a server's error what is to be done about the table.
func (ct *commitTable) explain(err error) error {
	switch errorNumber(err) {
	case 1146:
		return fmt.Errorf("livepool: the commit table, which Once and VerifyCommit need, does not exist: call CreateCommitTable once, or run %s: %w", ct.ddl(), err)
	case 1142:
		return fmt.Errorf("livepool: the user lacks a privilege on the commit table, which Once and VerifyCommit need: "+
			"GRANT SELECT, INSERT, DELETE ON %s, and where it is still to be created, have that done with %s: %w", ct.name, ct.ddl(), err)
	}
	return err
}

// refusal is the error of a table that lacks something, nil if it does not.
func (ct *commitTable) refusal(lacks []string) error {
	if lacks == nil {
		return nil
	}
	return fmt.Errorf("livepool: the commit table %s cannot keep the promise of Once and VerifyCommit: %s; "+
		"nothing was applied; rename it, and create it with CreateCommitTable, or with %s", ct.name, strings.Join(lacks, "; "), ct.ddl())
}

// What SHOW CREATE TABLE says of what matters, with and without quotes.
var (
	ddlTemporary = regexp.MustCompile(`(?i)^CREATE\s+TEMPORARY\b`)
	ddlEngine    = regexp.MustCompile("(?i)\n\\)\\s*ENGINE\\s*=\\s*(\\w+)")
	ddlColumn    = regexp.MustCompile("(?im)^\\s*[`\"]?unit[`\"]?\\s+(\\w+)(?:\\((\\d+)\\))?")
	ddlKey       = regexp.MustCompile("(?im)^\\s*(PRIMARY|UNIQUE)\\s+KEY\\s+(?:[`\"]?([^`\"(\n]+?)[`\"]?\\s+)?\\([`\"]?unit[`\"]?(?:\\s+(?:ASC|DESC))?\\)")
)

// transactional are the engines that keep a key exactly if they keep the work.
var transactional = []string{"INNODB", "ROCKSDB", "TOKUDB", "NDBCLUSTER", "OCEANBASE"}

// inspectDDL finds what a table of keys lacks: nil if nothing, or if that is not
// shown.
func inspectDDL(ddl string) (key string, lacks []string) {
	if ddlTemporary.MatchString(ddl) {
		lacks = append(lacks, "it is temporary")
	}
	if engine := ddlEngine.FindStringSubmatch(ddl); engine != nil && !containsFold(transactional, engine[1]) {
		lacks = append(lacks, "its engine is "+engine[1]+", in which a key survives the rollback of its unit")
	}
	switch column := ddlColumn.FindStringSubmatch(ddl); {
	case column == nil:
		lacks = append(lacks, "it has no column unit, or is no table")
	default:
		length, _ := strconv.Atoi(column[2])
		if !strings.EqualFold(column[1], "VARBINARY") {
			lacks = append(lacks, "its column unit is "+strings.TrimSpace(column[0])+", in which different keys may be equal: it has to be VARBINARY(255)")
		} else if length < maxKey {
			lacks = append(lacks, fmt.Sprintf("its column unit holds %d bytes, and may cut longer keys off", length))
		}
	}
	unique := ddlKey.FindStringSubmatch(ddl)
	if unique == nil {
		return "", append(lacks, "it has no unique key on the column unit alone and as a whole, so that a key is accepted twice")
	}
	if strings.EqualFold(unique[1], "PRIMARY") {
		return "PRIMARY", lacks
	}
	return unique[2], lacks
}

func containsFold(words []string, word string) bool {
	for _, w := range words {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

// maxKey is the length of the key column, in bytes.
const maxKey = 255

// keyLiteral is the key in a statement's text, because a statement with arguments
// costs the driver a round trip more.
func keyLiteral(key string) string { return "x'" + hex.EncodeToString([]byte(key)) + "'" }
