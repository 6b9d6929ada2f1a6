package pgdev

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNoServer says that the machine has no Postgres server binaries.
var ErrNoServer = errors.New("no Postgres server is installed: on Debian or Ubuntu run `apt-get install postgresql`, or set DATABASE_URL to use a server elsewhere")

// socketPathMax is what fits in a unix socket address on Linux, file name included.
const socketPathMax = 107

// socketFile is the file name that the port, which is otherwise unused, gives the socket.
const socketFile = ".s.PGSQL.5432"

// FindBinaries gives the directory that holds postgres and initdb: dir when it
// is not empty, else the newest installed version.
func FindBinaries(dir string) (string, error) {
	if dir != "" {
		if hasServer(dir) {
			return dir, nil
		}
		return "", fmt.Errorf("%s holds no Postgres server (postgres, initdb, psql)", dir)
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(found, func(a, b string) int { return majorOf(b) - majorOf(a) })
	found = append(found, "/usr/pgsql/bin", "/usr/local/pgsql/bin")
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			found = append(found, filepath.Dir(real))
		}
	}
	for _, candidate := range found {
		if hasServer(candidate) {
			return candidate, nil
		}
	}
	return "", ErrNoServer
}

func hasServer(dir string) bool {
	for _, tool := range []string{"postgres", "initdb", "psql"} {
		if info, err := os.Stat(filepath.Join(dir, tool)); err != nil || info.IsDir() {
			return false
		}
	}
	return true
}

func majorOf(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// owner is the ordinary user whom the server runs as.
type owner struct {
	uid, gid uint32
	name     string
	switched bool // we are root and become this user for the server
}

func serverUser() (*owner, error) {
	if os.Geteuid() != 0 {
		return &owner{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if errUID == nil && errGID == nil {
			return &owner{uid: uint32(uid), gid: uint32(gid), name: name, switched: true}, nil
		}
	}
	return nil, errors.New("postgres refuses to run as root, and there is neither a user postgres nor a user nobody to run it as; start tallystick as an ordinary user")
}

func (o *owner) credential() *syscall.Credential {
	if !o.switched {
		return nil
	}
	return &syscall.Credential{Uid: o.uid, Gid: o.gid, Groups: []uint32{o.gid}}
}

// makeDir makes dir and gives it to the server's user.
func (o *owner) makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if !o.switched {
		return nil
	}
	if err := os.Chown(dir, int(o.uid), int(o.gid)); err != nil {
		return fmt.Errorf("give %s to the user %s: %w", dir, o.name, err)
	}
	return nil
}

// canReach tells early, and by name, which parent the server's user may not
// enter: Postgres itself would only say "permission denied".
func (o *owner) canReach(dir string) error {
	if !o.switched {
		return nil
	}
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return fmt.Errorf("look at %s: %w", parent, err)
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().Perm()&0o001 == 0 && stat.Uid != o.uid &&
			(stat.Gid != o.gid || info.Mode().Perm()&0o010 == 0) {
			return fmt.Errorf("postgres does not run as root, and the user %s may not enter %s; choose a --data directory elsewhere (such as /var/lib/tallystick), or run: chmod o+x %s", o.name, parent, parent)
		}
		if parent == filepath.Dir(parent) {
			return nil
		}
	}
}

// socketDir is a directory whose path is short enough for a unix socket: beside
// the data, or, when that is too long, one of our own in the temporary directory.
func (s *Server) socketDir() (string, error) {
	dir := filepath.Join(s.options.Dir, "socket")
	if len(dir)+1+len(socketFile) > socketPathMax {
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.options.Dir))
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("tallystick-%x", h.Sum64()))
	}
	if err := s.user.makeDir(dir, 0o755); err != nil {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("look at the socket directory: %w", err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || stat.Uid != s.user.uid {
		return "", fmt.Errorf("%s belongs to somebody else; choose a shorter --data directory", dir)
	}
	return dir, nil
}

// postmaster is what postmaster.pid says of a server.
type postmaster struct {
	pid   int
	ready bool
}

func (s *Server) postmaster() (postmaster, bool) {
	content, err := os.ReadFile(filepath.Join(s.Data(), "postmaster.pid"))
	if err != nil {
		return postmaster{}, false
	}
	lines := strings.Split(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil {
		return postmaster{}, false
	}
	return postmaster{pid: pid, ready: len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready"}, true
}

// evict deals with a server that is still on our data. One whose parent lives is
// somebody's: refuse, and say whose. One whose parent was killed is stopping
// because of Pdeathsig, or hangs: wait for it, and ask it to stop once more.
func (s *Server) evict(ctx context.Context) error {
	p, ok := s.postmaster()
	if !ok {
		return nil
	}
	if !s.isOurs(p.pid) {
		return s.awaitOrphans(ctx, p.pid)
	}
	if parent := parentOf(p.pid); parent > 1 && isTallystick(parent) {
		return fmt.Errorf("the data directory %s is in use by process %d; stop that one first, or choose another --data directory", s.options.Dir, parent)
	}
	_ = syscall.Kill(p.pid, syscall.SIGINT)
	if err := s.awaitGone(ctx, p.pid, 20*time.Second); err == nil {
		return nil
	}
	children := childrenOf(p.pid)
	for _, pid := range append(children, p.pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return s.awaitGone(ctx, p.pid, 10*time.Second)
}

// isTallystick tells whether pid is a process that could have started the
// server: not the init process or session manager that inherits orphans.
func isTallystick(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return strings.Contains(name, "tallystick") || strings.HasSuffix(name, ".test")
}

// isOurs tells whether pid is a server process on our data directory; a pid in a
// stale file may by now belong to anybody.
func (s *Server) isOurs(pid int) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && cwd == s.Data()
}

// awaitOrphans waits until no backend of a killed postmaster is left: a new
// server refuses to start while one still holds the shared memory.
func (s *Server) awaitOrphans(ctx context.Context, postmaster int) error {
	for _, pid := range allProcesses() {
		if pid == postmaster || !s.isOurs(pid) {
			continue
		}
		if err := s.awaitGone(ctx, pid, 2*time.Second); err != nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			if err := s.awaitGone(ctx, pid, 5*time.Second); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Server) awaitGone(ctx context.Context, pid int, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for s.isOurs(pid) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("an old Postgres (process %d) on %s does not end", pid, s.options.Dir)
		case <-tick.C:
		}
	}
	return nil
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
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1])
	return ppid
}
