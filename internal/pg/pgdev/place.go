package pgdev

import (
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
)

// ErrNoServer says that the machine has no Postgres server binaries.
var ErrNoServer = errors.New("no Postgres server is installed: on Debian or Ubuntu run `apt-get install postgresql`, or set DATABASE_URL to use a server elsewhere")

// socketPathMax is what fits in a unix socket address on Linux, file name included.
const socketPathMax = 107

// socketFile is the file name that the port, which is otherwise unused, gives the socket.
const socketFile = ".s.PGSQL.5432"

// FindBinaries gives the directory that holds postgres and initdb: dir when it
// is not empty, else the newest installed version.
func FindBinaries(dir string) (string, error) { return binariesFor(dir, "") }

// binariesFor prefers the installed version that made the data: after an
// upgrade of the system two are installed, and the newer cannot read the older's.
func binariesFor(dir, version string) (string, error) {
	if dir != "" {
		if hasServer(dir) {
			return dir, nil
		}
		return "", fmt.Errorf("%s holds no Postgres server (postgres, initdb, psql)", dir)
	}
	return choose(candidates(), version)
}

func choose(candidates []string, version string) (string, error) {
	first := ""
	for _, candidate := range candidates {
		if !hasServer(candidate) {
			continue
		}
		if version == "" || strconv.Itoa(majorOf(candidate)) == version {
			return candidate, nil
		}
		if first == "" {
			first = candidate
		}
	}
	if first == "" {
		return "", ErrNoServer
	}
	return first, nil
}

// candidates are the directories where distributions put the server, newest
// first; it is seldom on the PATH.
func candidates() []string {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	versioned, _ := filepath.Glob("/usr/pgsql-*/bin")
	dirs = append(dirs, versioned...)
	slices.SortStableFunc(dirs, func(a, b string) int { return majorOf(b) - majorOf(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		if target, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
	}
	return append(dirs, "/usr/local/pgsql/bin")
}

func hasServer(dir string) bool {
	for _, tool := range []string{"postgres", "initdb", "psql"} {
		if info, err := os.Stat(filepath.Join(dir, tool)); err != nil || info.IsDir() {
			return false
		}
	}
	return true
}

// majorOf reads the version out of …/15/bin or …/pgsql-15/bin; 0 when there is none.
func majorOf(bin string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(bin)), "pgsql-"))
	return n
}

// owner is the ordinary user whom the server runs as.
type owner struct {
	uid, gid uint32
	name     string
	switched bool // we are root and become this user for the server
}

// serverUser is ourselves, or, when we are root, whoever owns the data already,
// so that a directory made by either can be used by both.
func serverUser(data, dir string) (*owner, error) {
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid()) //nolint:gosec // the kernel's ids have 32 bits
	if uid != 0 {
		if other, ok := ownerOf(data); ok && other.uid != uid {
			return nil, fmt.Errorf("%s belongs to the user %s; run as that user, or choose another --data directory", data, other.name)
		}
		return &owner{uid: uid, gid: gid, name: nameOf(uid)}, nil
	}
	for _, path := range []string{data, dir} {
		if o, ok := ownerOf(path); ok && o.uid != 0 {
			o.switched = true
			return &o, nil
		}
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

func ownerOf(path string) (owner, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return owner{}, false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}, false
	}
	return owner{uid: stat.Uid, gid: stat.Gid, name: nameOf(stat.Uid)}, true
}

func nameOf(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func (o *owner) credential() *syscall.Credential {
	if !o.switched {
		return nil
	}
	return &syscall.Credential{Uid: o.uid, Gid: o.gid, Groups: []uint32{o.gid}}
}

// makeHome makes the directory that holds everything. What is new, it and its
// parents, is made passable for the server's user whatever the umask says, and
// so is an empty one; nothing that was there with contents is changed.
func (o *owner) makeHome(dir string) error {
	passable := missing(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the data inside is 0700; the way to it must be open to the server's user
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) == 0 && len(passable) == 0 {
		passable = []string{dir}
	}
	if !o.switched {
		return nil
	}
	for _, made := range passable {
		info, err := os.Stat(made)
		if err != nil {
			return fmt.Errorf("look at %s: %w", made, err)
		}
		if err := os.Chmod(made, info.Mode().Perm()|0o011); err != nil {
			return fmt.Errorf("let the user %s into %s: %w", o.name, made, err)
		}
	}
	return nil
}

// missing lists dir and those of its parents that do not exist.
func missing(dir string) []string {
	var absent []string
	for {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) || dir == filepath.Dir(dir) {
			return absent
		}
		absent = append(absent, dir)
		dir = filepath.Dir(dir)
	}
}

// makePrivate makes a directory that only the server's user (and root) may
// enter. One that exists must be his: a stranger could have put it there.
func (o *owner) makePrivate(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if err == nil && o.switched {
		if err := o.give(dir); err != nil {
			return err
		}
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || stat.Uid != o.uid {
		return fmt.Errorf("%s is not a directory of the user %s; remove it or choose another --data directory", dir, o.name)
	}
	return os.Chmod(dir, 0o700) //nolint:gosec // a directory needs its x bit
}

// give hands path, which we have just made, to the server's user.
func (o *owner) give(path string) error {
	if !o.switched {
		return nil
	}
	if err := os.Lchown(path, int(o.uid), int(o.gid)); err != nil {
		return fmt.Errorf("give %s to the user %s: %w", path, o.name, err)
	}
	return nil
}

// canReach tells early, and by name, which directory the server's user may not
// enter: Postgres itself would only say "permission denied".
func (o *owner) canReach(dir string) error {
	if !o.switched {
		return nil
	}
	for parent := dir; ; parent = filepath.Dir(parent) {
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

// socketDir is a directory whose path fits a unix socket: beside the data, or,
// where that is too long or has a character that separates addresses, one of
// our own in /tmp, where a path is short on every machine.
func (s *Server) socketDir() (string, error) {
	dir := filepath.Join(s.options.Dir, "socket")
	if len(dir)+1+len(socketFile) > socketPathMax || strings.ContainsAny(dir, `,"'\`) {
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.options.Dir))
		dir = fmt.Sprintf("/tmp/tallystick-%d-%x", s.user.uid, h.Sum64())
	}
	return dir, s.user.makePrivate(dir)
}
