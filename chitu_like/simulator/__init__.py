"""The control code on a virtual clock: what a service would do, before there is one."""
