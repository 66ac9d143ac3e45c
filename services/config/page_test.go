package config_test

import (
	"net"
	"testing"

	"github.com/sluice-fhir/sluice/services/config"
)

// By default the page is served on loopback addresses only.
func TestWhereTheOperatorsPageIsShown(t *testing.T) {
	for _, row := range []struct {
		page, ip string
		want     bool
	}{
		{"auto", "127.0.0.1", true},
		{"auto", "::1", true},
		{"auto", "::", false},
		{"auto", "0.0.0.0", false},
		{"auto", "10.0.0.1", false},
		{"true", "0.0.0.0", true},
		{"false", "127.0.0.1", false},
		{"false", "10.0.0.1", false},
	} {
		page := config.OperatorPage{Page: row.page}
		if err := page.Validate(); err != nil {
			t.Errorf("%s: %v", row.page, err)
		}
		addr := &net.TCPAddr{IP: net.ParseIP(row.ip), Port: 9090}
		if got := page.Shown(addr); got != row.want {
			t.Errorf("%s on %s: shown %v, want %v", row.page, row.ip, got, row.want)
		}
	}
	for _, bad := range []string{"", "on", "True", "1"} {
		if (config.OperatorPage{Page: bad}).Validate() == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	for _, host := range []string{"https://scheduler.example", "scheduler.example:9090", "*", "", "a/b"} {
		if (config.OperatorPage{Page: "auto", Hosts: []string{"scheduler.example", host}}).Validate() == nil {
			t.Errorf("the host %q was accepted", host)
		}
	}
	if err := (config.OperatorPage{Page: "auto", Hosts: []string{"scheduler.example", "scheduler"}}).Validate(); err != nil {
		t.Error(err)
	}
}
