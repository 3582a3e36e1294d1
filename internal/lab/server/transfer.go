package server

// This file is how a Galera node gets what it missed while it was away: from which position it
// asks for the rest (incremental state transfer, which the provider does itself), and a script
// in place of a full copy of another node's data.

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// transferMethod names the script, as wsrep_sst_method.
const transferMethod = "incremental"

// The server runs the script on both sides even if only an incremental transfer is needed: the
// joiner's tells where it can be reached, the donor's (with --bypass) that nothing needs to be
// copied. Server's own scripts need rsync and do not work as root. This one needs nothing, for
// both sides are on one machine: the address is a file. A full copy it refuses, and so the
// joiner ends with an error instead of data that may be wrong.
const transferScript = `#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in
	--role) role=$2 ;;
	--address) address=$2 ;;
	--parent) parent=$2 ;;
	--gtid) gtid=$2 ;;
	--bypass) bypass=yes ;;
	--mysqld-args) break ;;
	esac
	shift
done
case $role in
joiner)
	rm -f "$address"
	echo "ready $address"
	until [ -s "$address" ]; do
		kill -0 "$parent" 2>/dev/null || exit 1
		sleep 0.02
	done
	read -r answer <"$address"
	[ "$answer" != refused ] || exit 1
	echo "$answer"
	;;
donor)
	answer=${bypass:+$gtid}
	echo "${answer:-refused}" >"$address.new"
	mv "$address.new" "$address"
	[ "$bypass" ] || exit 1
	echo "done $gtid"
	;;
esac
`

var errRefused = errors.New("no other node still has all that this one has missed: it cannot join again")

// writeTransfer puts the script where the node finds it.
func (m *member) writeTransfer() error {
	m.env = []string{"PATH=" + m.dir + string(filepath.ListSeparator) + os.Getenv("PATH")}
	return os.WriteFile(m.file("wsrep_sst_"+transferMethod), []byte(transferScript), 0o755)
}

// transferFile is where the donor's script writes its answer.
func (m *member) transferFile() string { return m.file("transfer") }

var (
	uuidRE     = regexp.MustCompile(`(?m)^uuid:.*$`)
	stateRE    = regexp.MustCompile(`(?m)^seqno:\s*(-?\d+)`)
	positionRE = regexp.MustCompile(`WSREP: Recovered position: (\S+)`)
)

// stateFile is where the node notes how far it is, when it is stopped.
func (m *member) stateFile() string { return filepath.Join(m.data(), "grastate.dat") }

// refused reports whether the node, since it was started last, was told that it needs a full copy.
func (m *member) refused() bool {
	answer, _ := os.ReadFile(m.transferFile())
	return string(bytes.TrimSpace(answer)) == "refused"
}

// recover writes the position that the data is at to init.log. Of a node that was killed while it
// committed, a later transaction may be prepared than was committed last: then the server wants to
// be told first that it is to be undone. The node gets it from the others again.
func (m *member) recover(ctx context.Context, args []string) error {
	run := func(more ...string) error {
		return m.install.once(ctx, m.data(), nil, slices.Concat([]string{"--wsrep-recover", "--skip-networking", "--socket=" + m.Socket()}, args, more)...)
	}
	err := run()
	if err == nil || !strings.Contains(err.Error(), "prepared transactions!") {
		return err
	}
	_ = run("--tc-heuristic-recover=ROLLBACK") // always ends with an error, which asks for a start without it
	return run()
}

// position is how far a node is that was killed: it knows only while it runs, or by a recovery
// of its data. It is empty where the node wrote it down when it was stopped.
func (m *member) position(ctx context.Context, args []string) (string, error) {
	state, err := os.ReadFile(m.stateFile())
	if err != nil {
		return "", err
	}
	if seqno := stateRE.FindSubmatch(state); seqno != nil && string(seqno[1]) != "-1" {
		return "", nil
	}
	if err := m.recover(ctx, args); err != nil {
		return "", err
	}
	log, err := os.ReadFile(m.file("init.log"))
	if err != nil {
		return "", err
	}
	found := positionRE.FindSubmatch(log)
	if found == nil {
		return "", errors.New("the position of the node is not to be found in its data:\n" + tail(m.file("init.log")))
	}
	// A node that was ended while it got what it missed has noted that its data may be half of
	// another's, and then its position does not count. By this transfer nothing is ever copied.
	uuid, _, _ := bytes.Cut(found[1], []byte(":"))
	state = uuidRE.ReplaceAll(state, append([]byte("uuid: "), uuid...))
	return string(found[1]), os.WriteFile(m.stateFile(), state, 0o600)
}
