package pgdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// postmaster is what postmaster.pid says of a server.
type postmaster struct {
	pid   int
	ready bool
}

func (s *Server) pidFile() string { return filepath.Join(s.Data(), "postmaster.pid") }

func (s *Server) postmaster() (postmaster, bool) {
	content, err := os.ReadFile(s.pidFile())
	if err != nil {
		return postmaster{}, false
	}
	lines := strings.Split(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 0 {
		return postmaster{}, false
	}
	return postmaster{pid: pid, ready: len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready"}, true
}

// evict ends a server that lost its owner, which we know because we hold the
// lock: it is stopping already because of Pdeathsig, or hangs. Then it removes
// the lock files of Postgres itself where a process has their number, because
// Postgres would refuse to start: after a restart of a container that is a
// stranger, and after a kill it may be a process that nobody has buried.
func (s *Server) evict() error {
	p, ok := s.postmaster()
	if ok && s.isOurs(p.pid) {
		_ = syscall.Kill(p.pid, syscall.SIGINT)
		if err := s.awaitGone(p.pid, quitMax); err != nil {
			killTree(p.pid)
		}
	}
	if err := s.endOrphans(); err != nil {
		return err
	}
	for _, path := range []string{s.pidFile(), filepath.Join(s.socket, socketFile+".lock")} {
		pid, ok := firstLine(path)
		if !ok || syscall.Kill(pid, 0) == syscall.ESRCH {
			continue
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove what a server that was killed left behind: %w", err)
		}
	}
	return nil
}

// firstLine is the process id at the head of a lock file of Postgres.
func firstLine(path string) (int, bool) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	return pid, err == nil && pid > 0
}

// isOurs tells whether pid is a server process on our data directory; a pid in a
// stale file may by now belong to anybody. A process that is just ending has no
// program any more, but still its directory, and perhaps the shared memory.
func (s *Server) isOurs(pid int) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil || cwd != s.Data() {
		return false
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err != nil || strings.HasPrefix(filepath.Base(exe), "postgres")
}

// endOrphans waits until no process of a killed server is left, and helps those
// that do not see that their postmaster is gone: a new server refuses to start
// while one still holds the shared memory.
func (s *Server) endOrphans() error {
	for _, pid := range allProcesses() {
		if !s.isOurs(pid) || s.awaitGone(pid, time.Second) == nil {
			continue
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		if err := s.awaitGone(pid, quitMax); err != nil {
			return err
		}
	}
	return nil
}

// awaitGone waits within a bound of its own: what it waits for is killed next.
func (s *Server) awaitGone(pid int, most time.Duration) error {
	late := time.NewTimer(most)
	defer late.Stop()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for s.isOurs(pid) {
		select {
		case <-late.C:
			return fmt.Errorf("an old Postgres (process %d) on %s does not end", pid, s.options.Dir)
		case <-tick.C:
		}
	}
	return nil
}

// killTree kills a process and its children. The parent is stopped first, so
// that it starts no further child while we look for them.
func killTree(pid int) {
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	children := childrenOf(pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for _, child := range children {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
}

func allProcesses() []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func childrenOf(parent int) []int {
	var children []int
	for _, pid := range allProcesses() {
		if parentOf(pid) == parent {
			children = append(children, pid)
		}
	}
	return children
}

// parentOf reads the fourth field of /proc/pid/stat, counted after the name in
// parentheses, which may itself hold blanks and parentheses.
func parentOf(pid int) int {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	stat := string(content)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // state, parent, …
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}
