.PHONY: setup
setup: ## libtorch into a shared cache, once a machine
	@.ci/libtorch
