package committable

import (
	"strings"
	"testing"
)

func TestWhatACommitTableLacks(t *testing.T) {
	const good = "CREATE TABLE `livepool_commits` (\n  `unit` varbinary(255) NOT NULL,\n  `committed_at` timestamp NOT NULL DEFAULT current_timestamp(),\n  PRIMARY KEY (`unit`),\n  KEY `committed_at` (`committed_at`)\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci"
	change := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatal(from)
		}
		return strings.Replace(good, from, to, 1)
	}
	for _, tt := range []struct{ name, ddl, key, lacks string }{
		{"good", good, "PRIMARY", ""},
		{"longer", change("(255)", "(3072)"), "PRIMARY", ""},
		{"ANSI_QUOTES", strings.ReplaceAll(good, "`", `"`), "PRIMARY", ""},
		{"without quotes", strings.ReplaceAll(good, "`", ""), "PRIMARY", ""},
		{"the engine is not shown", change(" ENGINE=InnoDB", ""), "PRIMARY", ""},
		{"TiDB", change("PRIMARY KEY (`unit`)", "PRIMARY KEY (`unit`) /*T![clustered_index] CLUSTERED */"), "PRIMARY", ""},
		{"a unique key", change("PRIMARY KEY (`unit`)", "UNIQUE KEY `one` (`unit`) USING BTREE"), "one", ""},
		{"a descending key", change("PRIMARY KEY (`unit`)", "UNIQUE KEY `one` (`unit` DESC)"), "one", ""},
		{"MyISAM", change("InnoDB", "MyISAM"), "PRIMARY", "MyISAM"},
		{"Aria", change("InnoDB", "Aria"), "PRIMARY", "Aria"},
		{"a text", change("varbinary(255)", "varchar(255) COLLATE utf8mb4_bin"), "PRIMARY", "VARBINARY"},
		{"padded", change("varbinary(255)", "binary(255)"), "PRIMARY", "VARBINARY"},
		{"short", change("(255)", "(254)"), "PRIMARY", "254 bytes"},
		{"no key", change("  PRIMARY KEY (`unit`),\n", ""), "", "no unique key"},
		{"a plain key", change("PRIMARY KEY (`unit`)", "KEY `unit` (`unit`)"), "", "no unique key"},
		{"a key of more", change("PRIMARY KEY (`unit`)", "PRIMARY KEY (`unit`,`committed_at`)"), "", "no unique key"},
		{"a key of a part", change("PRIMARY KEY (`unit`)", "UNIQUE KEY `unit` (`unit`(20))"), "", "no unique key"},
		{"of another column", change("PRIMARY KEY (`unit`)", "PRIMARY KEY (`unit_id`)"), "", "no unique key"},
		{"temporary", change("CREATE TABLE", "CREATE TEMPORARY TABLE"), "PRIMARY", "temporary"},
		{"a view", "CREATE ALGORITHM=UNDEFINED VIEW `livepool_commits` AS select 1 AS `unit`", "", "no table"},
	} {
		key, lacks := Inspect(tt.ddl)
		if got := strings.Join(lacks, "; "); key != tt.key || (got == "") != (tt.lacks == "") || !strings.Contains(got, tt.lacks) {
			t.Errorf("%s: key %q, lacks %q; want %q, %q", tt.name, key, got, tt.key, tt.lacks)
		}
	}
}
