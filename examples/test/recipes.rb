# Runs a recipe for Ruby: recipes.rb NAME ORDER_ID. With ABORT set, its transaction fails at its end.

require "active_record"
require_relative "../recipes/ruby/rails_orders"

ActiveRecord::Base.establish_connection(ENV.fetch("DATABASE_URL"))
begin
  Order.append("order:0", "ORDER_PAID", {})
rescue RuntimeError => error
  raise unless error.message == "append needs a transaction"
else
  raise "an append outside of a transaction is refused"
end

Order.transaction do
  Order.pay(ARGV.fetch(1).to_i)
  if ENV["ABORT"]
    puts "rolled back"
    raise ActiveRecord::Rollback
  end
end
