package k8scheck

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// root is the top of the tree.
const root = "../.."

// The binaries that scripts/k8s-verify.sh has built, and the folder of definitions.
var (
	bin    = os.Getenv("K8SCHECK_BIN")  // of the services
	crds   = os.Getenv("K8SCHECK_CRDS") // files of YAML, separated by spaces
	server *Server
	client *Client // of the server
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	for _, name := range []string{"K8SCHECK_BIN", "K8SCHECK_CRDS", "K8SCHECK_ETCD", "K8SCHECK_APISERVER"} {
		if os.Getenv(name) == "" {
			fmt.Fprintf(os.Stderr, "%s is not set: run scripts/k8s-verify.sh\n", name)
			return 1
		}
	}
	dir, err := os.MkdirTemp("", "sluice-k8scheck-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if server, err = Start(ctx, os.Getenv("K8SCHECK_ETCD"), os.Getenv("K8SCHECK_APISERVER"), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer server.Stop()
	if client, err = NewClient(server.Config); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for file := range strings.FieldsSeq(crds) {
		if err := client.Install(ctx, file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// render renders a kustomization.
func render(t *testing.T, dir string) *Set {
	t.Helper()
	objects, err := Render(dir)
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewSet(objects)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// developers runs the overlay's own script for its Secrets and returns them, the objects and their values.
func developers(t *testing.T) ([]Object, Values) {
	t.Helper()
	cmd := exec.Command(filepath.Join(root, "k8s/overlays/dev/secrets.sh"), filepath.Join(t.TempDir(), "client"))
	cmd.Env = append(os.Environ(), "SLUICE="+filepath.Join(bin, "sluice"))
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("secrets.sh: %v", err)
	}
	objects, err := ParseObjects(output)
	if err != nil {
		t.Fatalf("secrets.sh: %v", err)
	}
	values := Values{}
	for _, object := range objects {
		secret, err := As[struct {
			StringData map[string]string `json:"stringData"`
		}](object)
		if err != nil {
			t.Fatal(err)
		}
		values[object.GetName()] = map[string]string{}
		for key, value := range secret.StringData {
			// There is nobody at port 1, and whoever asks for it is refused at once.
			values[object.GetName()][key] = strings.NewReplacer("@postgres:5432", "@127.0.0.1:1", "@redis:6379", "@127.0.0.1:1").Replace(value)
		}
	}
	return objects, values
}

// production are made-up values of the form that docs/kubernetes.md asks for. Random ones and certificates are those of the
// overlay dev.
func production(t *testing.T) Values {
	t.Helper()
	_, values := developers(t)
	values = maps.Clone(values)
	const database = "postgres://NAME:made-up@127.0.0.1:1/sluice?sslmode=verify-full"
	values["sluice-redis"] = map[string]string{"url": "rediss://sluice:made-up@127.0.0.1:1/0"}
	values["sluice-source"] = map[string]string{"url": strings.Replace(database, "NAME", "sluice_reader", 1)}
	values["sluice-directory"] = values["sluice-source"]
	values["sluice-migration"] = map[string]string{
		"url": strings.Replace(database, "NAME", "sluice_owner", 1) + "&sslrootcert=/etc/sluice/ca/ca.crt",
	}
	delete(values, "sluice-clients")
	return values
}

func machine(t *testing.T, set *Set, values Values) Machine {
	return Machine{Set: set, Secrets: values, Bin: bin, Root: t.TempDir()}
}
