package pgdev

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeServer makes a directory that looks like an installed version.
func fakeServer(t *testing.T, root, version string) string {
	t.Helper()
	bin := filepath.Join(root, version, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"postgres", "initdb", "psql"} {
		if err := os.WriteFile(filepath.Join(bin, tool), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

func TestChoose(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	seventeen, fifteen := fakeServer(t, root, "17"), fakeServer(t, root, "pgsql-15")
	clientOnly := filepath.Join(root, "16", "bin")
	if err := os.MkdirAll(clientOnly, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		candidates []string
		version    string
		want       string
		err        error
	}{
		{"nothing installed", nil, "", "", ErrNoServer},
		{"client tools only", []string{clientOnly}, "16", "", ErrNoServer},
		{"new data: the first", []string{clientOnly, seventeen, fifteen}, "", seventeen, nil},
		{"existing data: its own version", []string{seventeen, fifteen}, "15", fifteen, nil},
		{"existing data of a version that is gone", []string{seventeen, fifteen}, "12", seventeen, nil},
	} {
		got, err := choose(c.candidates, c.version)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestNoServerNamesThePackageInOneLine(t *testing.T) {
	t.Parallel()
	message := ErrNoServer.Error()
	if !strings.Contains(message, "apt-get install postgresql") || strings.Contains(message, "\n") {
		t.Errorf("message %q: want one line that names the package", message)
	}
}

// TestMakePrivateRefusesAPlantedPath is about /tmp, where anybody may have put a
// link or a directory under the name that we shall use.
func TestMakePrivateRefusesAPlantedPath(t *testing.T) {
	t.Parallel()
	user, err := serverUser("", "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	if err := user.makePrivate(link); err == nil {
		t.Error("a link was accepted as our directory")
	}
	info, err := os.Stat(victim)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o755 {
		t.Errorf("the link's target has mode %o now, want 755", got)
	}
	if owner, ok := ownerOf(victim); !ok || int(owner.uid) != os.Geteuid() {
		t.Errorf("the link's target belongs to %d now, want %d", owner.uid, os.Geteuid())
	}
}

func TestCacheOfAStrangerIsNotUsed(t *testing.T) {
	t.Parallel()
	cache, err := os.MkdirTemp("", "pgdev-cache-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(cache) })
	if err := os.Chmod(cache, 0o777); err != nil { // like /dev/shm, without its sticky bit
		t.Fatal(err)
	}
	made := func() []string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(cache, "tallystick-cluster-*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for run, want := range []int{1, 1} {
		s, err := Start(t.Context(), Options{Dir: filepath.Join(cache, "server"), Cache: cache, Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(cache, "server")); err != nil {
			t.Fatal(err)
		}
		if got := made(); len(got) != want {
			t.Fatalf("run %d: cached clusters %v, want %d", run, got, want)
		}
	}
	if os.Geteuid() != 0 {
		return // only root can make what a stranger made
	}
	cached := made()[0]
	const stranger = 65533
	if err := os.Chown(filepath.Join(cached, "PG_VERSION"), stranger, stranger); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cached, "global", "pg_control"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), Options{Dir: filepath.Join(cache, "server"), Cache: cache, Volatile: true})
	if err != nil {
		t.Fatalf("start beside a cluster that a stranger put into the cache: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}
