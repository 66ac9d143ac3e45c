package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const root = "../.."

// TestMain is also what stands in for docker: scripts/compose.sh finds this program in docker's place.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "docker" {
		main()
		return
	}
	os.Exit(m.Run())
}

func read(t *testing.T) *tree {
	t.Helper()
	at, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	read, err := readTree(at)
	if err != nil {
		t.Fatal(err)
	}
	return read
}

func TestTheRepositoryHasNoProblems(t *testing.T) {
	for _, problem := range read(t).problems(t.Context()) {
		t.Error(problem)
	}
}

// Each row is one mistake that somebody may make, and what is said of it.
func TestMistakesAreFound(t *testing.T) {
	for _, row := range []struct{ file, old, with, want string }{
		// What the parser finds.
		{composeFile, "services:\n  api:", "services:\n  api:\n    imagine: x", "cannot be read"},
		{composeFile, "secrets: [postgres_url]", "secrets: [nothing]", "undefined secret"},
		{composeFile, "networks: [front, back]", "networks: [front, nothing]", "undefined network"},
		{composeFile, `volumes: ["minio:/data"]`, `volumes: ["nothing:/data"]`, "undefined volume"},
		// Variables.
		{composeFile, "${LOG_LEVEL}", "${LOG_LEVL}", "variable LOG_LEVL is not in .env.example"},
		{composeFile, "${LOG_LEVEL}", "${LOG_LEVEL:-info}", "variable LOG_LEVEL has a default"},
		{composeFile, "${LOG_LEVEL}", "info", ".env.example has LOG_LEVEL, which nothing uses"},
		// Images.
		{composeFile, "redis:7.4.11-alpine", "redis", `redis: its image "redis" has no version`},
		{composeFile, "redis:7.4.11-alpine", "redis:latest", "has no version"},
		{composeFile, "redis:7.4.11-alpine", "redis:7-alpine", "has no version"},
		{composeFile, "sluice-minio:local", "sluice-minio:1.0", "minio: what is built here is tagged local"},
		{composeFile, "target: minio", "target: minioo", `has no stage "minioo"`},
		{composeFile, "dockerfile: services/Dockerfile", "dockerfile: services/api/Dockerfile", "it is built by services/api/Dockerfile"},
		// What a container may do.
		{composeFile, "read_only: true", "read_only: false", "api: its root file system may be written to"},
		{composeFile, "cap_drop: [ALL]", "cap_drop: [NET_RAW]", "redis: it keeps capabilities"},
		{composeFile, "cap_drop: [ALL]", "cap_drop: [ALL]\n  cap_add: [SYS_PTRACE]", "it keeps capabilities"},
		{composeFile, "no-new-privileges:true", "no-new-privileges:false", "it may gain privileges"},
		{composeFile, `user: "65532:65532"`, `user: "0:0"`, "which account other than root"},
		{composeFile, `user: "65532:65532"`, `user: "1000:1000"`, "it runs as 1000:1000"},
		{composeFile, `user: "999:1000"`, `user: redis`, "redis: it does not say by a number"},
		{composeFile, "pids_limit: 512", "pids_limit: 0", "no limit"},
		{composeFile, "mem_limit: 2g\n\n  minio", "\n  minio", "postgres: its memory"},
		{composeFile, "  worker:\n    <<: *sluice", "  worker:\n    <<: *sluice\n    network_mode: host", "network_mode"},
		{composeFile, "  worker:\n    <<: *sluice", "  worker:\n    <<: *sluice\n    pid: host", "worker: it has something of the host"},
		{composeFile, `volumes: ["minio:/data"]`, `volumes: ["minio:/data", "/etc:/etc"]`, "it mounts a folder of the host"},
		// Health and stopping.
		{composeFile, "test: [CMD, /usr/local/bin/auth, --check-health]", "test: [NONE]", "auth"},
		{composeFile, "test: [CMD, /usr/local/bin/auth, --check-health]", "test: [CMD, /usr/local/bin/api, --check-health]",
			"auth: its health is asked by something else"},
		{composeFile, "test: [CMD, /usr/local/bin/auth, --check-health]", "test: [CMD, /bin/curl, x]", "stage sluice has no /bin/curl"},
		{composeFile, "  timeout: 6s\n", "", "leaves times to the engine"},
		{composeFile, "127.0.0.1:6379 ping", "127.0.0.1:6378 ping", "redis: its health check asks port 6378"},
		{composeFile, "stop_grace_period: 45s # SLUICE_WORKER_DRAIN", "stop_grace_period: 39s # SLUICE_WORKER_DRAIN",
			"worker: it is killed after 39s, want 40s"},
		{composeFile, "stop_grace_period: 40s # SLUICE_SCHEDULER_DRAIN", "stop_grace_period: 30s # SLUICE_SCHEDULER_DRAIN",
			"scheduler: it is killed after 30s, want 35s"},
		{composeFile, "SLUICE_WORKER_DRAIN: 10s", "SLUICE_WORKER_DRAIN: 5m", "worker: it is killed after 45s"},
		// The order of the start.
		{composeFile, "postgres: { condition: service_healthy }", "postgres: { condition: service_started }", "want healthy or completed"},
		{composeFile, "postgres: { condition: service_healthy }", "postgres: { condition: service_completed_successfully }", "runs for ever"},
		{composeFile, "migrate: { condition: service_completed_successfully }", "migrate: { condition: service_healthy }", "which nobody asks"},
		{composeFile, "redis: { condition: service_healthy }\n    healthcheck",
			"grafana: { condition: service_healthy }\n    healthcheck", "whose profile may be off"},
		// Who is told of whom.
		{composeFile, "http://minio:9000", "http://minio:9001", "minio has no such port"},
		{composeFile, "http://minio:9000", "http://store:9000", "there is no such service"},
		{composeFile, "networks: [back]\n    depends_on: *stores", "networks: [front]\n    depends_on: *stores", "worker: it depends on redis, which is in none of its networks"},
		{composeFile, "https://localhost:${AUTH_PORT}/auth/token", "https://localhost:1234/auth/token", "nothing is published there"},
		{composeFile, "    networks: [back]\n    depends_on: *stores", "    networks: [front, back]\n    depends_on: *stores",
			"worker: it is in a network with a way out"},
		{composeFile, "    internal: true", "    internal: false", "redis: it is in a network with a way out"},
		// Ports.
		{composeFile, `ports: ["127.0.0.1:${SCHEDULER_PORT}:9090"]`, `ports: ["${SCHEDULER_PORT}:9090"]`, "port 9090 is published on"},
		{composeFile, `SLUICE_AUTH_ADDR: ":8081"`, `SLUICE_AUTH_ADDR: ":8082"`, "auth: SLUICE_AUTH_ADDR is \":8082\""},
		{composeFile, `SLUICE_PRIVATE_ADDR: ":9090"`, `SLUICE_PRIVATE_ADDR: ":9091"`, "worker: SLUICE_PRIVATE_ADDR is \":9091\""},
		{composeFile, `      SLUICE_API_ADDR: ":8080"` + "\n", "", "api: it says that it has port 8080"},
		{composeFile, "    tmpfs: [\"/tmp:mode=1777,size=64m\"]\n    expose: [\"9090\"]",
			"    tmpfs: [\"/tmp:mode=1777,size=64m\"]\n    container_name: worker\n    expose: [\"9090\"]", "worker: it cannot be scaled"},
		// Files.
		{composeFile, "secrets: [redis_url, auth_key, audit_key, tls_certificate, tls_key]",
			"secrets: [redis_url, audit_key, tls_certificate, tls_key]", "auth: it is told of /run/secrets/auth_key, and has no such secret"},
		{composeFile, "      SLUICE_AUTH_KEY_SECRET_FILE: /run/secrets/auth_key\n", "", "auth: it gets the secret auth_key and is not told where"},
		{composeFile, "auth_key: { file: ./.compose/auth_key }", "auth_key: { environment: AUTH_KEY }", "secret auth_key is not a file below"},
		{composeFile, "./k8s/monitoring/alerts.yaml", "./k8s/monitoring/alarms.yaml", "config alerts"},
		{composeFile, "  - { source: alerts, target: /etc/prometheus/alerts.yaml }\n", "  - { source: alerts, target: /etc/alerts.yaml }\n",
			"prometheus is told of /etc/prometheus/alerts.yaml"},
		{composeFile, "volumes:\n  redis:", "volumes:\n  spare:\n  redis:", "volume spare is declared and not used"},
		{composeFile, "networks:\n  front:", "networks:\n  spare:\n  front:", "network spare is declared and not used"},
		{composeFile, "configs:\n  authority", "configs:\n  spare: { file: ./README.md }\n  authority", "config spare is declared and not used"},
		{composeFile, "secrets:\n  redis_conf", "secrets:\n  spare: { file: ./.compose/spare }\n  redis_conf", "secret spare is declared and not used"},
		{composeFile, "  scheduler:\n    <<: *sluice", "  scheduling:\n    <<: *sluice", "prometheus asks scheduler:9090"},
		// Programs.
		{composeFile, "entrypoint: [/usr/local/bin/worker]", "entrypoint: [/usr/local/bin/work]", "stage sluice has no /usr/local/bin/work"},
		{dockerfileName, "./worker ", "", "stage sluice has no /usr/local/bin/worker"},
		{dockerfileName, "COPY --from=build /out/ /usr/local/bin/", "COPY --from=build /out/ /bin/", "stage sluice has no /usr/local/bin/api"},
		{dockerfileName, "COPY --from=build-minio /out/minio ", "COPY --from=go /out/minio ", "minio: stage minio has no /usr/local/bin/minio"},
		// The Dockerfile.
		{dockerfileName, "FROM golang:1.26.7-bookworm AS go", "FROM golang AS go", "its base golang has no version"},
		{dockerfileName, "FROM golang:1.26.7-bookworm AS go", "FROM golang:latest AS go", "its base golang:latest has no version"},
		{dockerfileName, "USER 65532:65532", "USER root", `stage sluice runs as "root"`},
		{dockerfileName, "USER 65532:65532\n", "", `stage minio runs as ""`},
		{dockerfileName, "COPY proto proto", "ADD https://example.org/x proto", "ADD"},
		{dockerfileName, "COPY proto proto", "COPY prototype proto", "prototype"},
		{dockerfileName, "COPY proto proto", "COPY docs proto", ".dockerignore keeps docs out"},
		{dockerfileName, "COPY --from=build /out/ ", "COPY --from=built /out/ ", "built"},
		{dockerfileName, `ENTRYPOINT ["/usr/local/bin/minio"]`, "ENTRYPOINT /usr/local/bin/minio", "JSONArgsRecommended"},
		{dockerfileName, "FROM base AS minio", "from base AS minio", "ConsistentInstructionCasing"},
		{dockerfileName, "USER 65532:65532", "ENV API_TOKEN=x\nUSER 65532:65532", "SecretsUsedInArgOrEnv"},
		{dockerfileName, "EXPOSE 8080 8081 9090", "EXPOSE 8080 9090", "port 8081 is not in an EXPOSE"},
		{dockerfileName, "EXPOSE 8080", "EXPOSED 8080", "cannot be read"},
		{".dockerignore", "*\n", "", "secrets below .compose are sent"},
		{".dockerignore", "!pkg\n", "", ".dockerignore keeps pkg out"},
	} {
		tree := read(t)
		content := map[string]*[]byte{composeFile: &tree.compose, dockerfileName: &tree.dockerfile, ".dockerignore": &tree.ignore}[row.file]
		if !strings.Contains(string(*content), row.old) {
			t.Errorf("%s has no %q any more", row.file, row.old)
			continue
		}
		replace := -1
		if strings.HasPrefix(row.old, "*") {
			replace = 1
		}
		*content = []byte(strings.Replace(string(*content), row.old, row.with, replace))
		problems := tree.problems(t.Context())
		if !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, row.want) }) {
			t.Errorf("%q in place of %q: want %q, got %q", row.with, row.old, row.want, problems)
		}
	}
	tree := read(t)
	tree.settings["SPARE"] = "1"
	if problems := tree.problems(t.Context()); !slices.Contains(problems, ".env.example has SPARE, which nothing uses") {
		t.Errorf("a spare setting: %q", problems)
	}
}

// built runs what the Dockerfile's stage `build` runs, on the files that .dockerignore lets through and no others, and
// returns the folder with the programs. They must be static: the image holds nothing to link them with.
func built(t *testing.T, tree *tree) string {
	t.Helper()
	var err error
	if tree.image, err = readImage(tree.dockerfile); err != nil {
		t.Fatal(err)
	}
	ignored, err := ignorefile.ReadAll(bytes.NewReader(tree.ignore))
	if err != nil {
		t.Fatal(err)
	}
	matcher, err := patternmatcher.New(ignored)
	if err != nil {
		t.Fatal(err)
	}
	context, bin := t.TempDir(), t.TempDir()
	environ := os.Environ()
	for _, name := range []string{"go", "build", "build-minio"} {
		for _, command := range tree.image.stages[name].Commands {
			switch command := command.(type) {
			case *instructions.EnvCommand:
				for _, pair := range command.Env {
					environ = append(environ, pair.Key+"="+pair.Value)
				}
			case *instructions.CopyCommand:
				for _, source := range command.SourcePaths {
					copyAllowed(t, matcher, tree.root, source, filepath.Join(context, command.DestPath))
				}
			}
		}
	}
	for _, command := range tree.image.stages["build"].Commands {
		run, is := command.(*instructions.RunCommand)
		if !is {
			continue
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(strings.Join(run.CmdLine, " "), "/out/", bin+"/"))
		cmd.Dir, cmd.Env = context, environ
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", run.CmdLine, err, said)
		}
	}
	// MinIO takes minutes to build; that its module is complete without the rest of the tree takes none.
	list := exec.CommandContext(t.Context(), "go", "-C", "tools/minio", "list", "-f", "{{.Name}} {{.ImportPath}}", "github.com/minio/minio")
	list.Dir, list.Env = context, environ
	if said, err := list.CombinedOutput(); err != nil || !strings.HasSuffix(string(said), "main github.com/minio/minio\n") {
		t.Errorf("MinIO's module: %v\n%s", err, said)
	}
	for _, program := range tree.image.built("build") {
		file, err := elf.Open(filepath.Join(bin, filepath.Base(program)))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range file.Progs {
			if part.Type == elf.PT_INTERP {
				t.Errorf("%s is not static", program)
			}
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

// copyAllowed copies what of a file or a folder the matcher does not keep out.
func copyAllowed(t *testing.T, matcher *patternmatcher.PatternMatcher, root, source, to string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(root, source), func(file string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if out, err := matcher.MatchesOrParentMatches(name); err != nil || out {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		at := filepath.Join(to, strings.TrimPrefix(name, source))
		return errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, content, 0o644))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What our services do not accept is told, with what they say.
func TestServicesJudgeWhatTheyGet(t *testing.T) {
	bin := built(t, read(t))
	w, err := prepare(t.Context(), read(t).root, t.TempDir(), bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ old, with, want string }{
		{"", "", ""},
		{"SLUICE_API_ADDR", "SLUICE_API_ADDRESS", "SLUICE_API_ADDRESS is not a setting of this service"},
		{"      SLUICE_AUTH_KEY_SECRET_FILE: /run/secrets/auth_key\n", "", "SLUICE_AUTH_KEY_SECRET"},
		{"SLUICE_WORKER_DRAIN: 10s", "SLUICE_WORKER_DRAIN: ten", "worker does not accept"},
		{"${LOG_LEVEL}", "${LOG_LEVEL}er", "scheduler does not accept"},
		{"https://localhost:${AUTH_PORT}/auth/token", "http://auth:${AUTH_PORT}/auth/token", "auth does not accept"},
		{"target: /etc/sluice/issuers.yaml", "target: /etc/sluice/other.yaml", "SLUICE_TOKEN_ISSUERS_FILE"},
		{"command: [admin, migrate]", "command: [admin, migrates]", "migrate does not accept"},
		{"envelope_keys: { file: ./.compose/envelope_keys }", "envelope_keys: { file: ./.compose/redis_url }", "SLUICE_ENVELOPE_KEYS"},
		{"auth_key: { file: ./.compose/auth_key }", "auth_key: { file: ./.compose/nothing }", "scripts/compose.sh does not make it"},
	} {
		tree := read(t)
		changed := strings.ReplaceAll(string(tree.compose), row.old, row.with)
		if row.old != "" && changed == string(tree.compose) {
			t.Errorf("the file has no %q any more", row.old)
		}
		var err error
		if tree.project, err = load(t.Context(), tree.root, []byte(changed), tree.settings, everyProfile); err != nil {
			t.Fatal(err)
		}
		said := strings.Join(tree.judged(t.Context(), w), "\n")
		if (row.want == "") != (said == "") || !strings.Contains(said, row.want) {
			t.Errorf("%q in place of %q: want %q, got %q", row.with, row.old, row.want, said)
		}
	}
}

func TestWhatIsInsideBecomesWhatIsOutside(t *testing.T) {
	w := world{Ports: map[string]int{"redis:6379": 20001, "api:8080": 20002, "api:9090": 20003, "pi:8080": 20004}}
	for text, want := range map[string]string{
		"redis://:x@redis:6379/0":        "redis://:x@127.0.0.1:20001/0",
		"https://api:8080/":              "https://127.0.0.1:20002/",
		"api:80801 xapi:8080 a.pi:8080":  "api:80801 xapi:8080 a.pi:8080",
		":9090":                          "127.0.0.1:20003",
		"9090":                           "20003",
		"http://127.0.0.1:9090/readyz":   "http://127.0.0.1:20003/readyz",
		"port 9090 and 127.0.0.1:90901 ": "port 9090 and 127.0.0.1:90901 ",
	} {
		if got := w.hosts(w.own("api", text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	places := map[string]string{"/data": "/d", "/data/more": "/m", "/d": "/never"}
	for text, want := range map[string]string{
		"/data":                    "/d",
		"/data/x --dir=/data":      "/d/x --dir=/d",
		"/data/more/x:/data/mores": "/m/x:/d/mores",
		"/database a/data":         "/database a/data",
		"$(</data) '/data'":        "$(</d) '/d'",
	} {
		if got := replacePaths(text, places); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// The stand-in for docker does what it knows and refuses the rest.
func TestDockerRefusesWhatIsNotProven(t *testing.T) {
	w := world{Root: read(t).root, State: t.TempDir(), Dir: t.TempDir()}
	settings, err := os.ReadFile(filepath.Join(w.Root, settings))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.State, ".env"), settings, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"info", "compose version", "compose --file docker-compose.yml build"} {
		if err := w.docker(t.Context(), strings.Fields(args)); err != nil {
			t.Errorf("%s: %v", args, err)
		}
	}
	for _, args := range []string{
		"ps", "compose up", "compose --file other.yml build", "compose --file docker-compose.yml", "compose --file docker-compose.yml kill",
		"compose --file docker-compose.yml up", "compose --file docker-compose.yml run --privileged sluice x",
		"compose --file docker-compose.yml run sluice", "compose --file docker-compose.yml run --rm nothing x",
		"compose --file docker-compose.yml run --volume x sluice y",
	} {
		if err := w.docker(t.Context(), strings.Fields(args)); err == nil {
			t.Errorf("%s is done", args)
		}
	}
}
