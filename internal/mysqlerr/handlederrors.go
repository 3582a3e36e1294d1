package mysqlerr

import (
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// handledClasses are the classes of SQLSTATE of the errors that the function of a unit
// may swallow and still have the rest committed. A correct program handles the errors
// that its own statements and data cause: a duplicate key, a value out of range, a table
// that does not exist. The same statement on the same data always meets them, and the
// server has undone the statement as a whole.
var handledClasses = []string{
	"21", // cardinality: a subquery with more rows, a row with more columns than there is room for
	"22", // data: out of range, too long, not a number, a division by zero
	"23", // integrity: a duplicate or foreign key, NULL where there must be none
	"42", // syntax, and names that do not exist
	"44", // WITH CHECK OPTION
	"45", // SIGNAL
}

// handledExceptions decides for errors whose SQLSTATE misleads. After any other error (a
// full disk, a lock wait, a limit, a kill) a statement that the program counts on is
// missing. So it is after those that are false here, although the servers give them one
// of the classes. Those that are true are errors of the program's data, although some
// servers give them no such class (but HY000, 01000).
var handledExceptions = map[uint16]bool{
	1044: false, 1142: false, 1143: false, 1227: false, 1370: false, // access denied, which the administrator decides
	1148: false, 3948: false, // LOAD DATA LOCAL is off
	1203: false, 1226: false, 1461: false, // limits: connections, statements an hour, prepared statements

	1193: true, // ER_UNKNOWN_SYSTEM_VARIABLE
	1265: true, // WARN_DATA_TRUNCATED, in strict mode
	1273: true, // ER_UNKNOWN_COLLATION
	1295: true, // ER_UNSUPPORTED_PS
	1300: true, // ER_INVALID_CHARACTER_STRING
	1364: true, // ER_NO_DEFAULT_FOR_FIELD
	1366: true, // ER_TRUNCATED_WRONG_VALUE_FOR_FIELD
	1369: true, // ER_VIEW_CHECK_FAILED
	1411: true, // ER_WRONG_VALUE_FOR_TYPE
	1526: true, // ER_NO_PARTITION_FOR_GIVEN_VALUE
	1748: true, // ER_ROW_DOES_NOT_MATCH_GIVEN_PARTITION_SET
	3819: true, // ER_CHECK_CONSTRAINT_VIOLATED
	4025: true, // ER_CONSTRAINT_FAILED
}

// defaultStates are the SQLSTATEs of the most common errors, for a proxy or a fake that
// sends none.
var defaultStates = map[uint16]string{
	1048: "23000", 1054: "42S22", 1062: "23000", 1064: "42000", 1136: "21S01", 1146: "42S02", 1169: "23000", 1216: "23000",
	1217: "23000", 1242: "21000", 1264: "22003", 1292: "22007", 1305: "42000", 1365: "22012", 1406: "22001", 1451: "23000",
	1452: "23000", 1586: "23000", 1644: "45000", 1690: "22003", 1761: "23000", 1762: "23000",
}

// IsHandled says whether a server's error that ended neither connection nor
// transaction is one that a correct program handles.
func IsHandled(my *mysql.MySQLError) bool {
	if handled, listed := handledExceptions[my.Number]; listed {
		return handled
	}
	state := string(my.SQLState[:])
	if my.SQLState == [5]byte{} {
		state = defaultStates[my.Number]
	}
	return slices.ContainsFunc(handledClasses, func(class string) bool { return strings.HasPrefix(state, class) })
}
